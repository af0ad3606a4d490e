"""Records of a store's packs: a header and a chunk, as it is or compressed, perhaps encrypted.

A pack is records one after the other, then their `Contents`, encrypted too where records are, and a
trailer that says where these begin. The header's checksum is of what follows it, so damage is seen
without a key; the index has the digest of the chunk itself.
"""

from __future__ import annotations

import struct

from grit_runtime.errors import DamagedError
from grit_runtime.startup.named import NamedTuple

PLAIN, ZSTD = 0, 1

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

    coding: int  # PLAIN or ZSTD
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
    if magic != _MAGIC or coding not in {PLAIN, ZSTD} or encrypted not in {0, 1}:
        raise DamagedError("no record begins there")
    return Record(coding, bool(encrypted), size_bytes, checksum, nonce)


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
