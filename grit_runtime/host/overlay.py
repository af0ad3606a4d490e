"""Overlay mounts: finding the upper directory of one, and mounting read-only ones.

Spec: linux Documentation/filesystems/overlayfs.rst, proc_pid_mountinfo(5), mount(2).
"""

from __future__ import annotations

import ctypes
import os
import re

from grit_runtime.errors import FailedPreconditionError, NotFoundError
from grit_runtime.host import linux, procfs
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


# Options that mountinfo shows and mount(2) does not take.
_SHOWN_ONLY = ("rw", "seclabel")


class MountInfo(NamedTuple):
    """A line of mountinfo; *options* are the filesystem's own, "" for one without a value."""

    path: str
    fs_type: str
    options: dict[str, str]


def upper_dir(rootfs_path: str, *, mountinfo_path: str = "/proc/self/mountinfo") -> str:
    """The upper directory of the overlay mounted at *rootfs_path*.

    NotFoundError if nothing is mounted there; FailedPreconditionError if it is not an overlay, or
    if its upper directory does not store changes as root's overlays do.
    """
    mount = _mounted_at(os.path.realpath(rootfs_path), mountinfo_path)
    if mount.fs_type != "overlay":
        raise FailedPreconditionError(
            f"{rootfs_path}: is a mount of type {mount.fs_type}, expected overlay: "
            "have containerd use the overlayfs snapshotter"
        )
    upper = mount.options.get("upperdir", "")
    if not upper.startswith("/") or "userxattr" in mount.options:
        raise FailedPreconditionError(
            f"{rootfs_path}: the overlay's upperdir is {upper!r}"
            f"{' with userxattr' * ('userxattr' in mount.options)}, "
            "expected an absolute path and trusted attributes"
        )
    return _plain(upper)


def empty(rootfs_path: str) -> None:
    """Discard every change in the overlay mounted at *rootfs_path*, which must be unused.

    It is unmounted meanwhile: an overlay must not see its upper directory change beneath it.
    """
    path = os.path.realpath(rootfs_path)
    upper = upper_dir(path)
    options = _mounted_at(path).options
    if not all(map(os.path.isabs, re.split(r"(?<!\\):", options.get("lowerdir", "")))):
        # containerd makes the names of many layers relative, so that they fit into a mount's page
        raise FailedPreconditionError(
            f"{rootfs_path}: the overlay's lowerdir is relative, so it cannot be mounted anew"
        )
    unmount(path)
    for directory in (upper, _plain(options["workdir"])):
        _remove_contents(directory)
    words = [f"{key}={value}" if value else key for key, value in options.items()]
    _mount(path, ",".join(word for word in words if word not in _SHOWN_ONLY), flags=0)


def parse_mountinfo(data: bytes) -> list[MountInfo]:
    """The mounts in the text of /proc/PID/mountinfo, in its order."""
    return [_parse_line(line) for line in data.split(b"\n") if line]


def mounts_below(directory: str) -> list[str]:
    """The mountpoints inside *directory*, as this process sees them."""
    with open("/proc/self/mountinfo", "rb") as file:
        mounts = parse_mountinfo(file.read())
    return [mount.path for mount in mounts if mount.path.startswith(f"{directory}/")]


def mountpoints(pid: int) -> list[str]:
    """The mountpoints that the process *pid* sees."""
    data = procfs.text(pid, "mountinfo").encode(errors="surrogateescape")
    return [mount.path for mount in parse_mountinfo(data)]


def mount_layers(lower: Sequence[str], path: str) -> None:
    """Mount two or more directories, the topmost first, as a read-only overlay at *path*.

    An open directory can be given as /proc/self/fd/N. The mount is noexec, nodev and nosuid.
    OSError names *path*.
    """
    _mount(path, f"lowerdir={':'.join(map(_escaped, lower))}")


def unmount(path: str) -> None:
    """Unmount the topmost mount at *path*, which may not be a symbolic link."""
    linux.call("umount2", path, os.fsencode(path), linux.UMOUNT_NOFOLLOW)


def _mounted_at(path: str, mountinfo_path: str = "/proc/self/mountinfo") -> MountInfo:
    with open(mountinfo_path, "rb") as file:
        found = [mount for mount in parse_mountinfo(file.read()) if mount.path == path]
    if not found:
        raise NotFoundError(f"{path}: nothing is mounted there, expected a container's root")
    return found[-1]  # the last is on top of the others


def _remove_contents(directory: str) -> None:
    import shutil  # brings all compressors, and is seldom needed

    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def _parse_line(line: bytes) -> MountInfo:
    """``36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue``"""
    before, _, after = line.partition(b" - ")
    fs_type, _, options = after.split(b" ")
    pairs = (option.partition(b"=") for option in options.split(b","))
    return MountInfo(
        path=_unescaped(before.split(b" ")[4]),
        fs_type=fs_type.decode(),
        options={key.decode(): _unescaped(value) for key, _, value in pairs},
    )


def unescaped(text: str) -> str:
    """A path as mountinfo writes it, as text."""
    return _unescaped(text.encode(errors="surrogateescape"))


def _unescaped(text: bytes) -> str:
    """The kernel writes blanks, commas and backslashes as three octal digits."""
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), text))


def _plain(value: str) -> str:
    """A path among the options of a mounted overlay, which shows the escapes of `_escaped`."""
    return re.sub(r"\\(.)", r"\1", value)


def _escaped(path: str) -> str:
    """*path* as a value among an overlay's options, where commas and colons part."""
    return re.sub(r"([\\:,])", r"\\\1", path)


def _mount(
    path: str, options: str, *, flags: int = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
) -> None:
    arguments = (b"overlay", os.fsencode(path), b"overlay", ctypes.c_ulong(flags))
    linux.call("mount", path, *arguments, os.fsencode(options))
