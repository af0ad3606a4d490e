"""Copying bytes between files inside the kernel; holes stay holes. Knows no paths."""

from __future__ import annotations

import errno
import os
from io import FileIO

from grit_runtime.host import linux
from grit_runtime.startup.named import NamedTuple

_SMALL_BYTES = 64 << 10

# The kernel caches a write in one piece of memory, as large as the write if it can. Where a virtual
# machine gives its large free pieces back, the host has to find each of those again: 2 GiB took 1.6
# to 3.6 s then, and 1.0 with this size, which is also what the writes of cp come to.
_WRITE_BYTES = 64 << 10
_LARGE_BYTES = 1 << 20


def copy_range(src_fd: int, dst_fd: int, *, src_offset: int, size_bytes: int) -> None:
    """Copy *size_bytes* of *src_fd* from *src_offset* to the current offset of *dst_fd*.

    Both are regular files, *dst_fd* without O_APPEND. A hole of the source is passed over by
    seeking, so the region of *dst_fd* must never have been written, and a caller whose last bytes
    may be a hole ends with ftruncate. Leaves *dst_fd* at the end of the copy. OSError ENODATA when
    the source is shorter than asked.
    """
    end = src_offset + size_bytes
    shift = os.lseek(dst_fd, 0, os.SEEK_CUR) - src_offset
    if os.fstat(src_fd).st_size < end:
        raise _ended()
    offset = src_offset
    while offset < end:
        start, stop = _next_data(src_fd, offset, end)
        os.lseek(dst_fd, start + shift, os.SEEK_SET)
        _send(src_fd, dst_fd, start, stop)
        offset = stop


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of *data* at the current offset; a disk that fills up may accept only a part."""
    written = os.write(fd, data)
    while written < len(data):
        written += os.write(fd, memoryview(data)[written:])


def write_out(fd: int, data: bytes | memoryview, offset: int, *, to_disk: bool) -> None:
    """Write all of *data*. *to_disk* has the disk begin with it if it is large.

    Whoever needs it to be durable syncs in the end, and waits less then. Nothing is waited for here
    but a place in the disk's queue: so the disk's rate is the caller's, which may write faster
    otherwise, for as long as the kernel lets memory wait for the disk.
    """
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.pwrite(fd, view[done : done + _WRITE_BYTES], offset + done)
    if to_disk and done >= _LARGE_BYTES:
        linux.start_writing(fd, offset, done)


class _Large(NamedTuple):
    after: int  # pieces of data
    file: FileIO
    size_bytes: int
    path: bytes


class Gathered:
    """Data to be written to a file; its size is known before its offset."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._data: list[bytes] = []
        self._large: list[_Large] = []

    def add(self, data: bytes) -> None:
        self._data.append(data)
        self.size_bytes += len(data)

    def add_file(self, fd: int, size_bytes: int, path: bytes) -> None:
        """The first *size_bytes* of the regular file *fd*; an OSError names it *path*."""
        if size_bytes > _SMALL_BYTES:
            self._large.append(_Large(len(self._data), FileIO(os.dup(fd)), size_bytes, path))
            self.size_bytes += size_bytes
            return
        data = os.pread(fd, size_bytes, 0)
        if len(data) < size_bytes:
            raise OSError(*_ended().args, os.fsdecode(path))
        self.add(data)

    def write(self, fd: int, offset: int) -> None:
        """Write it all to the regular file *fd*, where nothing was written before, and forget it.

        Holes stay holes, as `copy_range` has them.
        """
        os.lseek(fd, offset, os.SEEK_SET)
        begin = 0
        for large in self._large:
            write_all(fd, b"".join(self._data[begin : large.after]))
            begin = large.after
            try:
                with large.file as file:
                    copy_range(file.fileno(), fd, src_offset=0, size_bytes=large.size_bytes)
            except OSError as error:
                raise OSError(error.errno, error.strerror, os.fsdecode(large.path)) from error
        write_all(fd, b"".join(self._data[begin:]))
        self.size_bytes = 0
        self._data.clear()
        self._large.clear()


def _next_data(fd: int, offset: int, end: int) -> tuple[int, int]:
    """First run of data at or after *offset*, cut at *end*; (end, end) when only a hole is left."""
    try:
        start = os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return end, end
    if start >= end:
        return end, end
    return start, min(os.lseek(fd, start, os.SEEK_HOLE), end)


def _send(src_fd: int, dst_fd: int, start: int, stop: int) -> None:
    # sendfile and not copy_file_range: the latter answers EXDEV or EINVAL for some pairs of
    # filesystems, and reflinks nothing at the 512 byte offsets of a tar.
    while start < stop:
        sent = os.sendfile(dst_fd, src_fd, start, stop - start)
        if sent == 0:
            raise _ended()
        start += sent


def _ended() -> OSError:
    return OSError(errno.ENODATA, "file ended while it was copied, expected it to stay as it was")
