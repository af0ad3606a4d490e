"""Chunks as records: what is read is what was written, and nothing is stored for zeros."""

from __future__ import annotations

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.errors import DamagedError, TamperedError
from grit_runtime.store import records
from grit_runtime.store.keys import DataKey
from grit_runtime.wire import pack
from tests.store import made

BLOCK = pack.BLOCK_BYTES
KEY = DataKey(bytes(32))
PIECES = st.lists(
    st.sampled_from([bytes(BLOCK), b"\1" * BLOCK, bytes(BLOCK - 1) + b"x", bytes(100), b"x"]),
    min_size=1,
    max_size=20,
)


def encoded(data: bytes, level: int, key: DataKey | None = None) -> bytes:
    digest = blake3(data).digest()
    packed = records.packed(memoryview(data), level)
    return b"".join(records.encode(packed, digest, key=key, bound_to=digest))


def decoded(record: bytes, data: bytes, key: DataKey | None = None) -> bytes:
    digest = blake3(data).digest()
    return bytes(records.decode(record, digest, max_bytes=len(data), key=key, bound_to=digest))


@given(pieces=PIECES, level=st.sampled_from([0, 1, 9]), key=st.sampled_from([None, KEY]))
def test_what_is_read_is_what_was_written(
    pieces: list[bytes], level: int, key: DataKey | None
) -> None:
    data = b"".join(pieces)
    assert decoded(encoded(data, level, key), data, key) == data


@given(zeros=st.integers(0, 30), text=st.integers(1, 30))
def test_no_block_of_zeros_is_stored(zeros: int, text: int) -> None:
    data = bytes(zeros * BLOCK) + b"x" * (text * BLOCK)
    are_few = 10 * zeros <= zeros + text
    most_bytes = len(data) if are_few else text * BLOCK
    assert len(encoded(data, 0)) <= most_bytes + pack.HEADER_BYTES + 20


def test_what_cannot_be_compressed_is_stored_without_its_zeros() -> None:
    data = made.noise(10 * BLOCK, 1) + bytes(10 * BLOCK)
    assert len(encoded(data, 9)) < 11 * BLOCK


@pytest.mark.parametrize("at", [pack.HEADER_BYTES, pack.HEADER_BYTES + 4, -1], ids=str)
def test_damage_is_seen_in_the_map_and_in_the_blocks(at: int) -> None:
    data = b"x" * BLOCK + bytes(9 * BLOCK)
    record = bytearray(encoded(data, 0))
    record[at] ^= 2
    with pytest.raises(DamagedError):
        decoded(bytes(record), data)


def test_a_whole_record_of_another_chunk_is_tampering() -> None:
    data, other = b"x" * BLOCK + bytes(BLOCK), b"y" * BLOCK + bytes(BLOCK)
    with pytest.raises(TamperedError):
        decoded(encoded(other, 0), data)
