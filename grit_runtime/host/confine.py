"""Files beneath a directory that somebody else may have filled, or may still be filling.

Every name is opened component by component with O_NOFOLLOW, so no symbolic link below the
starting directory is followed, whoever swaps a component meanwhile. The starting directory itself
comes from the configuration and is trusted. Knows nothing of checkpoints.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from grit_runtime.errors import ImageError, InvalidArgumentError
from grit_runtime.host import fdcopy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# One open descriptor a level; deeper than any image or checkpoint, well below RLIMIT_NOFILE.
MAX_DEPTH = 256

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY

_KINDS = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class Entry(NamedTuple):
    """A directory entry met by walk(); *parent_fd* is open until the walk takes its next step."""

    path: str
    stat: os.stat_result
    parent_fd: int
    name: str


def open_dir(path: str, *names: str) -> int:
    """Directory *path*, which is trusted, then *names* below it, which are not."""
    start_fd = os.open(path, _DIRECTORY)
    try:
        return descend(start_fd, names)
    finally:
        os.close(start_fd)


def descend(dir_fd: int, names: Sequence[str | bytes]) -> int:
    """Fd of the directory that *names*, one component each, lead to; *dir_fd* stays open.

    InvalidArgumentError for a name that is no plain component, ImageError for a component that is
    not a directory, OSError otherwise.
    """
    fd = os.dup(dir_fd)
    path = "/".join(map(os.fsdecode, names))
    for name in names:
        try:
            child_fd = _open_component(fd, name, _DIRECTORY, path)
        finally:
            os.close(fd)
        fd = child_fd
    return fd


def open_beneath(dir_fd: int, path: str, flags: int) -> int:
    """*path* below *dir_fd*; a file made by O_CREAT is 0600.

    With O_PATH a final symbolic link is opened itself; with other flags it is refused. A fifo or a
    device is opened as such: for a file that must be a regular one, use open_regular.
    """
    *parents, name = path.split("/")
    parent_fd = descend(dir_fd, parents)
    try:
        return _open_component(parent_fd, name, flags, path)
    finally:
        os.close(parent_fd)


def open_regular(dir_fd: int, path: str) -> int:
    """Regular file *path* below *dir_fd* for reading; anything else is refused unopened."""
    path_fd = open_beneath(dir_fd, path, os.O_PATH)
    try:
        mode = os.fstat(path_fd).st_mode
        if not stat.S_ISREG(mode):
            raise ImageError(f"{path!r} is {kind(mode)}, expected a regular file")
        return os.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY)
    finally:
        os.close(path_fd)


def kind(mode: int) -> str:
    """What *mode* (st_mode) is, with its article."""
    return _KINDS.get(stat.S_IFMT(mode), "of an unknown type")


def is_private(status: os.stat_result) -> bool:
    """Whether only root can change it: an ACL that grants writing shows in the group bits."""
    return status.st_uid == 0 and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def walk(dir_fd: int) -> Iterator[Entry]:
    """Everything beneath *dir_fd*: a directory before what it holds, names in order.

    Symbolic links are reported, never followed. ImageError below MAX_DEPTH directories.
    """
    return _walk(dir_fd, "", MAX_DEPTH)


def untrusted_entry(dir_fd: int) -> str | None:
    """Path of the first thing others than root can change, or that is no plain file or directory.

    "." is the directory itself; None says that all of it can be read in place.
    """
    if not is_private(os.fstat(dir_fd)):
        return "."
    for entry in walk(dir_fd):
        if not is_private(entry.stat) or not _is_plain(entry.stat.st_mode):
            return entry.path
    return None


def copy_tree(src_fd: int, dst_fd: int, *, max_entries: int, max_bytes: int) -> int:
    """Copy the files and directories beneath *src_fd* into the empty *dst_fd*; the bytes copied.

    Copies belong to the caller, 0600 and 0700, without the source's attributes. The source may
    change meanwhile: each file is copied as long as it was when opened. ImageError for other types
    of file and over the limits, which hold for the sum of apparent sizes.
    """
    size_bytes = 0
    for count, entry in enumerate(walk(src_fd), start=1):
        if count > max_entries:
            raise ImageError(f"more than {max_entries} files at {entry.path!r}: raise the limit")
        parent_fd = descend(dst_fd, entry.path.split("/")[:-1])
        try:
            size_bytes += _copy_entry(src_fd, entry, parent_fd, max_bytes - size_bytes)
        finally:
            os.close(parent_fd)
    return size_bytes


def remove_tree(dir_fd: int, name: str | bytes) -> bool:
    """Remove *name* and what it holds, following nothing; False when there was nothing."""
    return _remove(dir_fd, name, os.fsdecode(name), MAX_DEPTH)


def clear(dir_fd: int) -> int:
    """Remove everything in the directory; the number of entries it had."""
    names = os.listdir(dir_fd)
    for name in names:
        remove_tree(dir_fd, name)
    return len(names)


def _open_component(parent_fd: int, name: str | bytes, flags: int, path: str) -> int:
    text = os.fsdecode(name)
    if text in {"", ".", ".."} or "/" in text or "\0" in text:
        raise InvalidArgumentError(f"path {path!r}: {text!r} is no file name, expected plain names")
    try:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent_fd)
    except OSError as error:
        if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
            raise OSError(error.errno, error.strerror, path) from error
        mode = os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode
        expected = "a directory" if flags & os.O_DIRECTORY else "a file"
        raise ImageError(f"path {path!r}: {text!r} is {kind(mode)}, expected {expected}") from error


def _walk(dir_fd: int, prefix: str, depth: int) -> Iterator[Entry]:
    for name in sorted(os.listdir(dir_fd)):
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        path = prefix + name
        yield Entry(path, status, dir_fd, name)
        if not stat.S_ISDIR(status.st_mode):
            continue
        child_fd = _open_child(dir_fd, name, path, depth)
        try:
            yield from _walk(child_fd, path + "/", depth - 1)
        finally:
            os.close(child_fd)


def _remove(dir_fd: int, name: str | bytes, path: str, depth: int) -> bool:
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    except IsADirectoryError:
        child_fd = _open_child(dir_fd, name, path, depth)
        try:
            for child in os.listdir(child_fd):
                _remove(child_fd, child, f"{path}/{child}", depth - 1)
        finally:
            os.close(child_fd)
        os.rmdir(name, dir_fd=dir_fd)
    return True


def _open_child(dir_fd: int, name: str | bytes, path: str, depth: int) -> int:
    if depth == 0:
        raise ImageError(f"directory {path!r} lies deeper than {MAX_DEPTH} levels")
    return _open_component(dir_fd, name, _DIRECTORY, path)


def _is_plain(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


def _copy_entry(src_fd: int, entry: Entry, dst_parent_fd: int, max_bytes: int) -> int:
    if stat.S_ISDIR(entry.stat.st_mode):
        os.mkdir(entry.name, 0o700, dir_fd=dst_parent_fd)
        return 0
    file_fd = open_regular(src_fd, entry.path)
    try:
        size_bytes = os.fstat(file_fd).st_size
        if size_bytes > max_bytes:
            raise ImageError(
                f"{entry.path!r} holds {size_bytes} bytes, expected at most {max_bytes} more"
            )
        _copy_file(file_fd, dst_parent_fd, entry.name, size_bytes)
    finally:
        os.close(file_fd)
    return size_bytes


def _copy_file(src_fd: int, dst_parent_fd: int, name: str, size_bytes: int) -> None:
    dst_fd = open_beneath(dst_parent_fd, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        fdcopy.copy_range(src_fd, dst_fd, src_offset=0, size_bytes=size_bytes)
        os.ftruncate(dst_fd, size_bytes)
    finally:
        os.close(dst_fd)
