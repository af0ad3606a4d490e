"""Mounting what containerd's snapshotter describes, as containerd's Go library does.

Spec: mount(2), containerd v2.1.9 core/mount/mount_linux.go.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager, suppress

from grit_runtime import paths
from grit_runtime.errors import InvalidArgumentError
from grit_runtime.host import id_maps, linux, overlay
from grit_runtime.host.linux import (
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    UMOUNT_NOFOLLOW,
)
from grit_runtime.host.process import new_token
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_CLONE_FS = 0x200

# Options that are flags of mount(2): those that set a flag, and those that clear it.
_SET = {
    "ro": MS_RDONLY, "nosuid": MS_NOSUID, "nodev": MS_NODEV, "noexec": MS_NOEXEC, "sync": 16,
    "mand": 64, "dirsync": 128,
    "noatime": 1 << 10, "nodiratime": 1 << 11, "bind": MS_BIND, "rbind": MS_BIND | MS_REC,
    "relatime": 1 << 21, "strictatime": 1 << 24, "remount": MS_REMOUNT,
}  # fmt: skip
_CLEAR = {
    "rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec", "async": "sync",
    "nomand": "mand", "atime": "noatime", "diratime": "nodiratime", "norelatime": "relatime",
    "nostrictatime": "strictatime",
}  # fmt: skip
_IGNORED = ("defaults", "loop")
_ID_MAPS = ("uidmap=", "gidmap=")
_LOWER = "lowerdir="

_STAGES = f"{paths.RUN_DIR}/lowers"

# mount(2) takes one page of options.
_DATA_LIMIT_BYTES = 4096


class Mount(NamedTuple):
    """``containerd.types.Mount``; *target* is below the directory that it is mounted in."""

    type: str
    source: str
    target: str
    options: Sequence[str]


def mount(what: Mount, directory: str) -> None:
    """Mount *what* at its target in *directory*. Blocks. OSError names the place.

    With both options uidmap and gidmap, the mount is ID-mapped. As in the Go library, a read-only
    bind is not, and neither is a mount with only one of the options.
    """
    place = os.path.join(directory, what.target.lstrip("/")) if what.target else directory
    uidmap, gidmap = (_value_of(what.options, name) for name in _ID_MAPS)
    if not uidmap or not gidmap:
        _mount_all_of(what, place)
        return
    with id_maps.user_namespace(id_maps.decode(uidmap, gidmap)) as userns_fd:
        if what.type == "overlay":
            with _mapped_lowers(what, userns_fd) as mapped:
                _mount_all_of(mapped, place)
        else:
            _mount_all_of(what, place)
            read_only_bind = MS_BIND | MS_RDONLY
            if _parsed(what.options)[0] & read_only_bind != read_only_bind:
                id_maps.clone(place, place, userns_fd)


@contextmanager
def _mapped_lowers(what: Mount, userns_fd: int) -> Iterator[Mount]:
    """The overlay with its lower directories ID-mapped, because overlayfs cannot map itself.

    The overlay clones their mount, so this one is needed only during mount(2).
    """
    lower = next(option for option in what.options if option.startswith(_LOWER))
    paths = lower.removeprefix(_LOWER).split(":")
    common = os.path.commonpath([os.path.dirname(path) for path in paths])
    stage = f"{_STAGES}-{new_token()}"
    os.makedirs(stage, mode=0o700)
    try:
        id_maps.clone(common, stage, userns_fd, read_only=True)
        mapped = [stage + path.removeprefix(common) for path in paths]
        for path, there in zip(paths, mapped, strict=True):
            if not os.path.samefile(path, there):
                raise InvalidArgumentError(
                    f"overlay's {path} is on another mount than {common}, expected all lower "
                    "directories on one where uidmap is given"
                )
        new = f"{_LOWER}{':'.join(mapped)}"
        options = [new if option is lower else option for option in what.options]
        yield what._replace(options=options)
    finally:
        unmount_all(stage)
        os.rmdir(stage)


def _value_of(options: Sequence[str], name: str) -> str:
    values = (option.removeprefix(name) for option in options if option.startswith(name))
    return next(values, "")


def _mount_all_of(what: Mount, place: str) -> None:
    flags, data = _parsed(what.options)
    if flags & MS_BIND:
        _mount(what, place, flags & (MS_BIND | MS_REC), [])
        if rest := flags & ~(MS_BIND | MS_REC):
            _mount(what, place, rest | MS_BIND | MS_REMOUNT, data)
    else:
        _mount(what, place, flags, data)


def unmount_all(directory: str) -> None:
    """Unmount everything at *directory*, in use or not; it is no error if nothing is mounted.

    Blocks until a file system that loses its last mount is written to its medium.
    """
    with suppress(OSError):
        while True:
            linux.call("umount2", directory, os.fsencode(directory), MNT_DETACH | UMOUNT_NOFOLLOW)


def unmount_below(directory: str) -> None:
    """Unmount everything inside *directory*, in use or not."""
    for path in reversed(overlay.mounts_below(os.path.realpath(directory))):
        unmount_all(path)


def _parsed(options: Sequence[str]) -> tuple[int, list[str]]:
    flags = 0
    data = []
    for option in options:
        if option in _SET:
            flags |= _SET[option]
        elif option in _CLEAR:
            flags &= ~_SET[_CLEAR[option]]
        elif option not in _IGNORED and not option.startswith(_ID_MAPS):
            data.append(option)
    return flags, data


def _mount(what: Mount, place: str, flags: int, data: list[str]) -> None:
    common = ""
    if len(",".join(data)) >= _DATA_LIMIT_BYTES and what.type == "overlay":
        common, data = _shortened(data)
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        if common:
            linux.call("unshare", place, _CLONE_FS)  # chdir must not move other threads
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
    """Overlay options with lower directories relative to the directory that all are in."""
    lower = next(option for option in data if option.startswith(_LOWER))
    paths = lower.removeprefix(_LOWER).split(":")
    common = os.path.commonpath(paths)
    near = ":".join(os.path.relpath(path, common) for path in paths)
    return common, [f"{_LOWER}{near}" if option is lower else option for option in data]
