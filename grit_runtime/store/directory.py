"""A store in a directory, which other nodes may have mounted too, by NFS for example.

A file is written under a name that begins with a dot, synced, and renamed: on NFS too, whoever
opens the name afterwards sees all of it. Nothing else is asked of the file system: no lock, no
exchange, no link.
"""

from __future__ import annotations

import errno
import os
import weakref
from contextlib import contextmanager, suppress

from grit_runtime.errors import NoStoreError, NotFoundError, UnavailableError
from grit_runtime.files import confine, room
from grit_runtime.files.direct import DirectFile
from grit_runtime.host import process
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import stored
from grit_runtime.store.listed import Stored

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL


class Directory:
    pack_bytes = 64 << 20  # each costs syncs of a file and of a directory

    def __init__(self, path: str, *, make: bool, fd: int | None = None) -> None:
        """The directory at *path*, or *fd*, which is there and is closed with the store."""
        self.url = path
        self._fd = _opened(path, make=make) if fd is None else fd
        # An agent lives on, and a volume that it had open could not be unmounted.
        weakref.finalize(self, os.close, self._fd)

    @contextmanager
    def writing(self, name: str) -> Iterator[_File]:
        *parents, last = name.split("/")
        with room.named_if_full(f"store {self.url}"), _File(self._made(parents), last) as file:
            yield file

    def read(self, name: str, offset: int = 0, size_bytes: int | None = None) -> bytes:
        try:
            fd = confine.open_regular(self._fd, name)
        except FileNotFoundError:
            raise NotFoundError(f"{self.url} has no {name}") from None
        with closing_fd(fd):
            left = os.fstat(fd).st_size - offset
            if size_bytes is not None:
                left = min(left, size_bytes)
            parts = []
            while left > 0 and (data := os.pread(fd, left, offset)):
                parts.append(data)
                offset += len(data)
                left -= len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def listed(self, prefix: str) -> list[Stored]:
        return [found for found in self._files(prefix) if not _is_unfinished(found)]

    def remove_unfinished(self) -> None:
        files = self._files("")
        dead_s = max((found.written_s for found in files), default=0.0) - stored.LOCK_LIVES_S
        for found in files:
            # A lock is written by whoever does not know yet that we are alone.
            is_lock = found.name.startswith(stored.LOCKS) and found.written_s > dead_s
            if _is_unfinished(found) and not is_lock:
                self.remove(found.name)

    def _files(self, prefix: str) -> list[Stored]:
        try:
            dir_fd = confine.descend(self._fd, [name for name in prefix.split("/") if name])
        except FileNotFoundError:
            return []
        with closing_fd(dir_fd):
            return [
                Stored(prefix + entry.path, entry.stat.st_size, entry.stat.st_mtime)
                for entry in confine.walk(dir_fd, changing=True)
                if confine.is_file(entry.stat)
            ]

    def remove(self, name: str) -> None:
        *parents, last = name.split("/")
        try:
            with closing_fd(confine.descend(self._fd, parents)) as parent_fd:
                os.unlink(last, dir_fd=parent_fd)
        except FileNotFoundError:
            return
        self._drop_empty(parents)

    def _made(self, names: list[str]) -> int:
        """Fd of the directory that *names* lead to, made if it is missing."""
        fd = os.dup(self._fd)
        for name in names:
            with closing_fd(fd) as parent_fd:
                try:
                    os.mkdir(name, mode=0o700, dir_fd=parent_fd)
                except FileExistsError:
                    pass
                else:
                    os.fsync(parent_fd)
                fd = confine.descend(parent_fd, [name])
        return fd

    def _drop_empty(self, names: list[str]) -> None:
        while len(names) > 1:
            *names, last = names
            with closing_fd(confine.descend(self._fd, names)) as parent_fd:
                try:
                    os.rmdir(last, dir_fd=parent_fd)
                except OSError as error:
                    if error.errno in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT}:
                        return
                    raise


def _opened(path: str, *, make: bool) -> int:
    if make:
        os.makedirs(path, mode=0o700, exist_ok=True)
    try:
        return confine.open_dir(path)
    except (FileNotFoundError, NotADirectoryError):
        raise NoStoreError(
            f"{path} is no directory; is the store's volume mounted on this node?"
        ) from None


def _is_unfinished(found: Stored) -> bool:
    return found.name.rpartition("/")[2].startswith(".")


class _File:
    """An object that is being written."""

    def __init__(self, parent_fd: int, name: str) -> None:
        self._parent_fd = parent_fd
        self._name = name
        self._temporary = f".{name}.{process.new_token()}"
        self._fd = -1

    def __enter__(self) -> Self:
        try:
            self._fd = confine.open_beneath(self._parent_fd, self._temporary, _NEW)
            self._file = DirectFile(self._fd)
        except BaseException:
            os.close(self._parent_fd)
            raise
        return self

    def write(self, data: bytes | memoryview) -> int:
        return self._file.write(data)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with closing_fd(self._parent_fd) as parent_fd:
            try:
                with closing_fd(self._fd):
                    if kind is None:
                        self._file.sync()
                if kind is None:
                    self._rename(parent_fd)
                    os.fsync(parent_fd)
            except BaseException:
                kind = BaseException
                raise
            finally:
                if kind is not None:
                    with suppress(FileNotFoundError):  # a collection has removed it
                        os.unlink(self._temporary, dir_fd=parent_fd)

    def _rename(self, parent_fd: int) -> None:
        try:
            os.rename(self._temporary, self._name, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
        except FileNotFoundError:
            raise UnavailableError(
                f"{self._name} was removed while it was put into the store: that stood still for "
                "so long that a collection took it for dead; try again"
            ) from None
