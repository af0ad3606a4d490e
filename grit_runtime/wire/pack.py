"""Records of a store's packs: a header and a chunk in some coding, perhaps encrypted.

A pack is records one after the other, then their `Contents`, encrypted too where records are, and a
trailer that says where these begin. So that damage is seen without a key, the header's checksum is
of what follows it, if that is compressed or encrypted; else it is of the chunk, and so a part of
the digest that the index has of it.
"""

from __future__ import annotations

import struct

from grit_runtime.errors import DamagedError
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Run = tuple[int, int]  # where it begins, and the place behind it

PLAIN, ZSTD, SPARSE = 0, 1, 2

# Of a chunk whose coding is SPARSE: its size, a bit for each block, from the lowest of the first
# byte on, and the blocks whose bits are set. The others are zeros.
BLOCK_BYTES = 16 << 10
_SIZE = struct.Struct("<I")

CONTENTS = b"contents"  # what their record is bound to; a chunk's to its digest

CHECKSUM_BYTES = 16
NONCE_BYTES = 12

_HEADER = struct.Struct(f"<4sBB2xI{CHECKSUM_BYTES}s{NONCE_BYTES}s")
_TRAILER = struct.Struct("<Q8s")
_MAGIC, _END = b"grtC", b"grtPack1"

HEADER_BYTES = _HEADER.size
TRAILER_BYTES = _TRAILER.size


class Record(NamedTuple):
    """What a record's header says of the bytes behind it."""

    coding: int  # PLAIN, ZSTD or SPARSE
    is_encrypted: bool
    size_bytes: int
    checksum: bytes
    nonce: bytes  # zeros if it is not encrypted


def header(record: Record) -> bytes:
    return _HEADER.pack(
        _MAGIC,
        record.coding,
        record.is_encrypted,
        record.size_bytes,
        record.checksum,
        record.nonce,
    )


def parse_header(data: bytes | memoryview) -> Record:
    """The header at the start of *data*; DamagedError if it is none."""
    if len(data) < HEADER_BYTES:
        raise DamagedError(f"a record of {len(data)} bytes, expected {HEADER_BYTES} and more")
    magic, coding, encrypted, size_bytes, checksum, nonce = _HEADER.unpack_from(data)
    if magic != _MAGIC or coding not in {PLAIN, ZSTD, SPARSE} or encrypted not in {0, 1}:
        raise DamagedError("no record begins there")
    return Record(coding, bool(encrypted), size_bytes, checksum, nonce)


def sparse_map(size_bytes: int, runs: Sequence[Run]) -> bytes:
    """What is before the blocks of a chunk of *size_bytes* that has nothing but zeros but *runs*.

    These begin where blocks do, and end there or where the chunk does.
    """
    bits = 0
    for start, end in runs:
        first, behind = start // BLOCK_BYTES, -(-end // BLOCK_BYTES)
        bits |= (1 << behind) - (1 << first)
    return _SIZE.pack(size_bytes) + bits.to_bytes(_map_bytes(size_bytes), "little")


def parse_sparse_map(data: memoryview, max_bytes: int) -> tuple[int, list[Run], memoryview]:
    """How many bytes a chunk has, where it is no zeros, and what is there, one after the other.

    DamagedError if that does not fit together, or the chunk has more than *max_bytes*.
    """
    if len(data) < _SIZE.size:
        raise DamagedError(f"a sparse chunk of {len(data)} bytes")
    (size_bytes,) = _SIZE.unpack_from(data)
    if size_bytes > max_bytes:
        raise DamagedError(f"a record holds more than {max_bytes} bytes")
    start = _SIZE.size + _map_bytes(size_bytes)
    bits = int.from_bytes(data[_SIZE.size : start], "little")
    runs = [
        (at, min(at + BLOCK_BYTES, size_bytes))
        for at in range(0, size_bytes, BLOCK_BYTES)
        if bits >> at // BLOCK_BYTES & 1
    ]
    blocks = data[start:]
    if len(blocks) != sum(end - start for start, end in runs):
        raise DamagedError(f"a sparse chunk's blocks have {len(blocks)} bytes, unlike its map")
    return size_bytes, runs, blocks


def _map_bytes(size_bytes: int) -> int:
    return -(-size_bytes // (8 * BLOCK_BYTES))


def trailer(contents_offset: int) -> bytes:
    return _TRAILER.pack(contents_offset, _END)


def parse_trailer(data: bytes, pack_bytes: int) -> int:
    """Where the contents begin in a pack of *pack_bytes*; DamagedError if nowhere."""
    if len(data) != TRAILER_BYTES:
        raise DamagedError("it is cut")
    offset, end = _TRAILER.unpack(data)
    if end != _END or offset + HEADER_BYTES + TRAILER_BYTES > pack_bytes:
        raise DamagedError("it does not end as a pack does")
    return int(offset)
