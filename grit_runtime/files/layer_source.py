"""The bytes of a layer file, plain or gzip, in order. Knows nothing of tar.

A layer is read twice, once to check it and once to apply it, so it is a regular file.
"""

from __future__ import annotations

import os
import zlib
from typing import Protocol

from grit_runtime.errors import ImageError, LayerError
from grit_runtime.files import fdcopy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WINDOW = 16 + zlib.MAX_WBITS  # zlib.h, inflateInit2: the gzip format only
_CHUNK_BYTES = 1 << 18
_SMALL_BYTES = 64 << 10  # what is copied through memory
_MAX_TAIL_BYTES = 1 << 20


class Source(Protocol):
    """Reads on from *position*, which counts bytes of the tar, not of its compressed form."""

    position: int

    def read(self, size_bytes: int) -> bytes:
        """The next *size_bytes*; ImageError if there are fewer."""

    def skip(self, size_bytes: int) -> None:
        """Skip data; if there is less, the next read raises ImageError."""

    def copy_to(self, dst_fd: int, size_bytes: int) -> None:
        """Write the next *size_bytes* at the current offset of *dst_fd*, a new file."""

    def finish(self) -> None:
        """ImageError unless only complete padding follows the archive."""


def open_source(fd: int) -> Source:
    """The layer in *fd*, from its first byte; *fd* stays the caller's, its offset may move."""
    return _Gzip(fd) if is_compressed(fd) else _Plain(fd)


def is_compressed(fd: int) -> bool:
    return os.pread(fd, len(_GZIP_MAGIC), 0) == _GZIP_MAGIC


class _Plain:
    __slots__ = ("_begin", "_buffer", "_fd", "position")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = b""
        self._begin = 0  # of what is in the buffer
        self.position = 0

    def read(self, size_bytes: int) -> bytes:
        at = self.position - self._begin
        if not 0 <= at <= len(self._buffer) - size_bytes:
            self._begin, at = self.position, 0
            self._buffer = os.pread(self._fd, max(size_bytes, _CHUNK_BYTES), self.position)
            if len(self._buffer) < size_bytes:
                raise _truncated(self.position)
        self.position += size_bytes
        return self._buffer[at : at + size_bytes]

    def skip(self, size_bytes: int) -> None:
        self.position += size_bytes

    def copy_to(self, dst_fd: int, size_bytes: int) -> None:
        if size_bytes <= _SMALL_BYTES:
            fdcopy.write_all(dst_fd, self.read(size_bytes))
            return
        fdcopy.copy_range(self._fd, dst_fd, src_offset=self.position, size_bytes=size_bytes)
        os.ftruncate(dst_fd, size_bytes)  # the last of it may be a hole
        self.position += size_bytes

    def finish(self) -> None:
        _check_tail(os.pread(self._fd, _MAX_TAIL_BYTES + 1, self.position))


class _Gzip:
    __slots__ = ("_fd", "_inflate", "_input", "_offset", "_output", "position")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._offset = 0
        self._inflate = zlib.decompressobj(_GZIP_WINDOW)
        self._input = b""
        self._output = memoryview(b"")
        self.position = 0

    def read(self, size_bytes: int) -> bytes:
        return b"".join(self._pieces(size_bytes))

    def skip(self, size_bytes: int) -> None:
        for _ in self._pieces(size_bytes):
            pass

    def copy_to(self, dst_fd: int, size_bytes: int) -> None:
        for piece in self._pieces(size_bytes):
            fdcopy.write_all(dst_fd, piece)

    def finish(self) -> None:
        tail = bytes(self._output)
        while len(tail) <= _MAX_TAIL_BYTES and (more := self._inflated()):
            tail += more
        _check_tail(tail)

    def _pieces(self, size_bytes: int) -> Iterator[memoryview]:
        while size_bytes:
            if not self._output:
                self._output = memoryview(self._inflated())
                if not self._output:
                    raise _truncated(self.position)
            piece = self._output[:size_bytes]
            self._output = self._output[size_bytes:]
            size_bytes -= len(piece)
            self.position += len(piece)
            yield piece

    def _inflated(self) -> bytes:
        """Some more of the tar; empty at the end of the last gzip member."""
        while True:
            if not self._input:
                self._input = os.pread(self._fd, _CHUNK_BYTES, self._offset)
                self._offset += len(self._input)
            at_end = not self._input
            if self._inflate.eof:
                if at_end:
                    return b""
                self._inflate = zlib.decompressobj(_GZIP_WINDOW)
            try:
                output = self._inflate.decompress(self._input, _CHUNK_BYTES)
            except zlib.error as error:
                raise LayerError(f"layer: not gzip at byte {self._offset}: {error}") from error
            self._input = self._inflate.unused_data or self._inflate.unconsumed_tail
            if output:
                return output
            if at_end and not self._inflate.eof:
                raise _truncated(self.position)


def _truncated(position: int) -> ImageError:
    return LayerError(f"layer: ends before byte {position}, which it should have: copy it again")


def _check_tail(tail: bytes) -> None:
    # tar pads its last record with zeros, to 10 KiB unless told otherwise
    if len(tail) > _MAX_TAIL_BYTES or tail.strip(b"\0"):
        raise LayerError("layer: holds more after its end, expected some zeros")
