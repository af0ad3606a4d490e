"""Writing a new file past the kernel's cache: nobody reads it here soon.

On a quick disk the cache costs more processor time than all else that is done to the bytes, and it
would hold what the node's pods have a better use for.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os

from grit_runtime.files import fdcopy

# Both are multiples of what file systems and disks ask for.
_BLOCK_BYTES = 4096
_BUFFER_BYTES = 4 << 20


class DirectFile:
    """An empty file *fd*, open for writing, that is written from its beginning to its end.

    Where the file system has no O_DIRECT it is written as any other.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = mmap.mmap(-1, _BUFFER_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._filled_bytes = 0
        self._written_bytes = 0
        self._is_direct = False

    def write(self, data: bytes | memoryview) -> int:
        """Blocks while the disk takes what is ready for it: how much it has taken meanwhile."""
        before_bytes = self._written_bytes
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                part = view[done : done + _BUFFER_BYTES - self._filled_bytes]
                self._buffer[self._filled_bytes : self._filled_bytes + len(part)] = part
                self._filled_bytes += len(part)
                done += len(part)
                if self._filled_bytes == _BUFFER_BYTES:
                    self._take()
        return self._written_bytes - before_bytes if self._is_direct else 0

    def sync(self) -> None:
        """Have all of it be durable; nothing is written afterwards."""
        if self._written_bytes:
            self._take()
        else:  # too small to be worth it
            fdcopy.write_all(self._fd, self._buffer[: self._filled_bytes])
        os.fsync(self._fd)

    def _take(self) -> None:
        """Write what is in the buffer; what is behind its end in the last block is cut off."""
        if not self._written_bytes:
            self._is_direct = _pass_by_cache(self._fd)
        size_bytes = -(-self._filled_bytes // _BLOCK_BYTES) * _BLOCK_BYTES
        with memoryview(self._buffer) as view:
            done = 0
            while done < size_bytes:
                done += os.pwrite(self._fd, view[done:size_bytes], self._written_bytes + done)
        self._written_bytes += self._filled_bytes
        if size_bytes > self._filled_bytes:
            os.ftruncate(self._fd, self._written_bytes)
        self._filled_bytes = 0


def _pass_by_cache(fd: int) -> bool:
    """Have what is written to *fd* from now on go to the disk at once; False where that is not had.

    Addresses, offsets and sizes are whole pages then.
    """
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:  # this file system has none
            raise
        return False
    return True
