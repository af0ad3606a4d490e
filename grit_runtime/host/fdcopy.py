"""Bytes from one file to another inside the kernel, holes kept as holes. Knows no paths."""

from __future__ import annotations

import errno
import os


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
    """All of *data* at the current offset: a disk that fills up takes a part before it refuses."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


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
