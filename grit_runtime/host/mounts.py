"""Mounts that containerd's snapshotter describes, made as its Go library makes them.

Spec: mount(2), containerd v2.1.9 core/mount/mount_linux.go.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from typing import NamedTuple

from grit_runtime.host import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_MS_REMOUNT = 32
_MS_BIND = 1 << 12
_MS_REC = 1 << 14
_RDONLY = 1
_MNT_DETACH = 2
_NOFOLLOW = 8

# Options that are flags of mount(2): those that set one, and those that clear it.
_SET = {
    "ro": _RDONLY, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "mand": 64, "dirsync": 128,
    "noatime": 1 << 10, "nodiratime": 1 << 11, "bind": _MS_BIND, "rbind": _MS_BIND | _MS_REC,
    "relatime": 1 << 21, "strictatime": 1 << 24, "remount": _MS_REMOUNT,
}  # fmt: skip
_CLEAR = {
    "rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec", "async": "sync",
    "nomand": "mand", "atime": "noatime", "diratime": "nodiratime", "norelatime": "relatime",
    "nostrictatime": "strictatime",
}  # fmt: skip
_IGNORED = ("defaults", "loop")

# mount(2) takes one page of options.
_DATA_LIMIT_BYTES = 4096


class Mount(NamedTuple):
    """``containerd.types.Mount``; *target* is below the directory that it is mounted in."""

    type: str
    source: str
    target: str
    options: Sequence[str]


def mount(what: Mount, directory: str) -> None:
    """Mount *what* at its target in *directory*. OSError names the place."""
    place = os.path.join(directory, what.target.lstrip("/")) if what.target else directory
    flags, data = _parsed(what.options)
    if flags & _MS_BIND:
        _mount(what, place, flags & (_MS_BIND | _MS_REC), [])
        if rest := flags & ~(_MS_BIND | _MS_REC):
            _mount(what, place, rest | _MS_BIND | _MS_REMOUNT, data)
    else:
        _mount(what, place, flags, data)


def unmount_all(directory: str) -> None:
    """Take away all that is mounted at *directory*, in use or not; nothing there is no error."""
    with suppress(OSError):
        while True:
            linux.call("umount2", directory, os.fsencode(directory), _MNT_DETACH | _NOFOLLOW)


def _parsed(options: Sequence[str]) -> tuple[int, list[str]]:
    flags = 0
    data = []
    for option in options:
        if option in _SET:
            flags |= _SET[option]
        elif option in _CLEAR:
            flags &= ~_SET[_CLEAR[option]]
        elif option not in _IGNORED:
            data.append(option)
    return flags, data


def _mount(what: Mount, place: str, flags: int, data: list[str]) -> None:
    common = ""
    if len(",".join(data)) >= _DATA_LIMIT_BYTES and what.type == "overlay":
        common, data = _shortened(data)
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        if common:
            os.chdir(common)
        linux.call(
            "mount",
            place,
            os.fsencode(what.source),
            os.fsencode(place),
            what.type.encode(),
            ctypes.c_ulong(flags),
            os.fsencode(",".join(data)),
        )
    finally:
        if common:
            os.fchdir(here)
        os.close(here)


def _shortened(data: list[str]) -> tuple[str, list[str]]:
    """Overlay options with lower directories as seen from the directory that all are in."""
    lower = next(option for option in data if option.startswith("lowerdir="))
    paths = lower.removeprefix("lowerdir=").split(":")
    common = os.path.commonpath(paths)
    near = ":".join(os.path.relpath(path, common) for path in paths)
    return common, [f"lowerdir={near}" if option is lower else option for option in data]
