"""Opening files beneath a directory whose content is untrusted, and may still change.

Every name is opened component by component with O_NOFOLLOW, so no symbolic link below the
starting directory is followed, even if a component is swapped meanwhile. The starting directory
itself comes from the configuration and is trusted. Knows nothing of checkpoints.
"""

from __future__ import annotations

import errno
import operator
import os
import stat
from typing import Self

from grit_runtime.errors import ImageError, InvalidArgumentError
from grit_runtime.files import fdcopy
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.startup.named import NamedTuple

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


class _OtherKindError(ImageError):
    """A name leads to another kind of file than it should."""


class Entry(NamedTuple):
    """A directory entry met by walk(); *parent_fd* is open until the walk takes its next step."""

    path: str
    stat: os.stat_result
    parent_fd: int
    name: str


def open_dir(path: str, *names: str) -> int:
    """Directory *path*, which is trusted, then *names* below it, which are not."""
    with closing_fd(os.open(path, _DIRECTORY)) as start_fd:
        return descend(start_fd, names)


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


class Directories:
    """Opens directories beneath a root one after the other, as `descend` does.

    The last one stays open as long as the next is the same, which is common in an archive.
    """

    def __init__(self, root_fd: int) -> None:
        self.root_fd = root_fd
        self._names: Sequence[str | bytes] = ()
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.forget()

    def descend(self, names: Sequence[str | bytes]) -> int:
        """An fd that this object owns, open until the next call."""
        if self._fd < 0 or names != self._names:
            self.forget()
            self._fd = descend(self.root_fd, names)
            self._names = names
        return self._fd

    def forget(self) -> None:
        """Open the next directory again, because its name may lead elsewhere by now."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def open_beneath(dir_fd: int, path: str, flags: int) -> int:
    """*path* below *dir_fd*; a file made by O_CREAT is 0600.

    With O_PATH a final symbolic link is opened itself; with other flags it is refused. A fifo or a
    device is opened as such: for a file that must be a regular one, use open_regular.
    """
    *parents, name = path.split("/")
    with closing_fd(descend(dir_fd, parents)) as parent_fd:
        return _open_component(parent_fd, name, flags, path)


def open_regular(dir_fd: int, path: str) -> int:
    """Regular file *path* below *dir_fd* for reading; anything else is refused unopened."""
    with closing_fd(open_beneath(dir_fd, path, os.O_PATH)) as path_fd:
        mode = os.fstat(path_fd).st_mode
        if not stat.S_ISREG(mode):
            raise ImageError(f"{path!r} is {kind(mode)}, expected a regular file")
        return os.open(f"/proc/self/fd/{path_fd}", os.O_RDONLY)


def kind(mode: int) -> str:
    """What *mode* (st_mode) is, with its article."""
    return _KINDS.get(stat.S_IFMT(mode), "of an unknown type")


def is_file(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode)


def is_private(status: os.stat_result) -> bool:
    """Whether only root can change it: an ACL that grants writing shows in the group bits."""
    return status.st_uid == 0 and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def walk(dir_fd: int, *, changing: bool = False) -> Iterator[Entry]:
    """Everything beneath *dir_fd*: a directory before its content, names in order.

    Symbolic links are reported, never followed. ImageError below MAX_DEPTH directories. In a tree
    that is *changing*, entries that vanish meanwhile are left out, and new ones may be; otherwise a
    vanished entry is an OSError.
    """
    return _walk(dir_fd, "", MAX_DEPTH, (FileNotFoundError, _OtherKindError) if changing else ())


def paths(dir_fd: int) -> Iterator[str]:
    """The path of everything beneath *dir_fd*, as walk() has it, without looking at each."""
    return _paths(dir_fd, "", MAX_DEPTH)


def untrusted_entry(dir_fd: int) -> str | None:
    """Path of the first entry that others than root can change, or that is not a file or directory.

    "." is the directory itself; None means that all of it can be read in place.
    """
    if not is_private(os.fstat(dir_fd)):
        return "."
    for entry in walk(dir_fd):
        if not is_private(entry.stat) or not _is_plain(entry.stat.st_mode):
            return entry.path
    return None


def copy_tree(src_fd: int, dst_fd: int, *, max_entries: int, max_bytes: int) -> None:
    """Copy the files and directories beneath *src_fd* into the empty *dst_fd*.

    Copies belong to the caller, 0600 and 0700, without the source's attributes. The source may
    change meanwhile: each file is copied with the length that it had when opened. ImageError for
    other types of file and over the limits, which apply to the sum of apparent sizes.
    """
    size_bytes = 0
    for count, entry in enumerate(walk(src_fd), start=1):
        if count > max_entries:
            raise ImageError(f"more than {max_entries} files at {entry.path!r}: raise the limit")
        with closing_fd(descend(dst_fd, entry.path.split("/")[:-1])) as parent_fd:
            size_bytes += _copy_entry(src_fd, entry, parent_fd, max_bytes - size_bytes)


def remove_tree(dir_fd: int, name: str | bytes) -> None:
    """Remove *name* and its content, if there is any, following no links."""
    _remove(dir_fd, name, os.fsdecode(name), MAX_DEPTH)


def clear(dir_fd: int) -> None:
    """Remove everything in the directory."""
    for name in os.listdir(dir_fd):
        remove_tree(dir_fd, name)


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
        raise _OtherKindError(
            f"path {path!r}: {text!r} is {kind(mode)}, expected {expected}"
        ) from error


def _walk(
    dir_fd: int, prefix: str, depth: int, passed_over: tuple[type[Exception], ...]
) -> Iterator[Entry]:
    try:
        names = sorted(os.listdir(dir_fd))
    except passed_over:
        return
    for name in names:
        path = prefix + name
        try:
            status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except passed_over:
            continue
        except OSError as error:  # it names the last part alone, as 7 of /proc/self/fd
            raise OSError(error.errno, error.strerror, path) from error
        yield Entry(path, status, dir_fd, name)
        if not stat.S_ISDIR(status.st_mode):
            continue
        try:
            child_fd = _open_child(dir_fd, name, path, depth)
        except passed_over:
            continue
        with closing_fd(child_fd):
            yield from _walk(child_fd, path + "/", depth - 1, passed_over)


def _paths(dir_fd: int, prefix: str, depth: int) -> Iterator[str]:
    with os.scandir(dir_fd) as found:
        entries = sorted(found, key=operator.attrgetter("name"))
    for entry in entries:
        path = prefix + entry.name
        yield path
        if entry.is_dir(follow_symlinks=False):
            with closing_fd(_open_child(dir_fd, entry.name, path, depth)) as child_fd:
                yield from _paths(child_fd, path + "/", depth - 1)


def _remove(dir_fd: int, name: str | bytes, path: str, depth: int) -> None:
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        with closing_fd(_open_child(dir_fd, name, path, depth)) as child_fd:
            for child in os.listdir(child_fd):
                _remove(child_fd, child, f"{path}/{child}", depth - 1)
        os.rmdir(name, dir_fd=dir_fd)


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
    with closing_fd(open_regular(src_fd, entry.path)) as file_fd:
        size_bytes = os.fstat(file_fd).st_size
        if size_bytes > max_bytes:
            raise ImageError(
                f"{entry.path!r} holds {size_bytes} bytes, expected at most {max_bytes} more"
            )
        _copy_file(file_fd, dst_parent_fd, entry.name, size_bytes)
    return size_bytes


def _copy_file(src_fd: int, dst_parent_fd: int, name: str, size_bytes: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with closing_fd(open_beneath(dst_parent_fd, name, flags)) as dst_fd:
        fdcopy.copy_range(src_fd, dst_fd, src_offset=0, size_bytes=size_bytes)
        os.ftruncate(dst_fd, size_bytes)
