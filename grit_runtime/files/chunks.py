"""Reading a file of a checkpoint in chunks, of which many are zeros."""

from __future__ import annotations

import errno
import os

from grit_runtime.errors import ImageError
from grit_runtime.files import digest

_ZEROS = bytes(digest.PIECE_BYTES)
_SAMPLE_BYTES = 4096


def read(fd: int, path: str, offset: int, view: memoryview) -> bool:
    """Fill *view* from *offset*; False, and nothing else, if the chunk is zeros.

    ImageError if the file ends before.
    """
    end = offset + len(view)
    if next_data(fd, offset) >= end:
        return False
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if count == 0:
            raise ImageError(f"{path!r} ends at byte {offset + done}, expected {end}: it was cut")
        done += count
    return not is_zeros(view)


def is_zeros(data: memoryview) -> bool:
    """Whether a chunk has no other bytes."""
    # Of bytes: a memoryview is compared item by item.
    if bytes(data[:_SAMPLE_BYTES]) != _ZEROS[: min(_SAMPLE_BYTES, len(data))]:
        return False
    return bytes(data) == _ZEROS[: len(data)]


def next_data(fd: int, offset: int) -> int:
    """Where the next bytes that are no hole begin; the file's end if there are none."""
    return _next(fd, offset, os.SEEK_DATA)


def next_hole(fd: int, offset: int) -> int:
    """Where the next hole begins; the file's end if there is none."""
    return _next(fd, offset, os.SEEK_HOLE)


def _next(fd: int, offset: int, what: int) -> int:
    try:
        return os.lseek(fd, offset, what)
    except OSError as error:
        if error.errno != errno.ENXIO:  # no data from there to the end
            raise
        return os.fstat(fd).st_size
