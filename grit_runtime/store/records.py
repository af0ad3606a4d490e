"""Chunks as the records of packs, and back."""

from __future__ import annotations

from functools import lru_cache
from time import thread_time

from blake3 import blake3

from grit_runtime.errors import DamagedError, TamperedError, WrongKeyError
from grit_runtime.startup.named import NamedTuple
from grit_runtime.store import compression as zstd
from grit_runtime.wire import pack
from grit_runtime.wire.pack import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.model.stored import Key
    from grit_runtime.store.keys import DataKey, FileKey
    from grit_runtime.wire.pack import Run

_NO_NONCE = bytes(pack.NONCE_BYTES)
_ZEROS = bytes(pack.BLOCK_BYTES)

# A chunk whose first part does not get smaller than this is stored as it is.
_SAMPLE_BYTES = 64 << 10
_WORTH_IT = 0.9


class Packed(NamedTuple):
    """What a record is made of."""

    coding: int
    parts: list[bytes | memoryview]
    level: int  # that it was compressed with; 0 if it was not
    seconds: float  # of a core

    @property
    def size_bytes(self) -> int:
        return sum(map(len, self.parts))


def packed(data: bytes | memoryview, level: int) -> Packed:
    """*data* compressed with *level*, if there is something to gain; else without its zeros.

    With level 0 it is not tried.
    """
    begin = thread_time()
    if level and _is_compressible(data):
        compressed = zstd.compress(data, level=level)
        return Packed(pack.ZSTD, [compressed], level, thread_time() - begin)
    view = memoryview(data)
    runs = _runs(view)
    coding, parts = pack.PLAIN, [data]
    if sum(end - start for start, end in runs) < _WORTH_IT * len(view):
        coding, parts = pack.SPARSE, [pack.sparse_map(len(view), runs)]
        parts += [view[start:end] for start, end in runs]
    return Packed(coding, parts, 0, thread_time() - begin)


def encode(
    packed: Packed, digest: bytes, *, key: DataKey | None, bound_to: bytes
) -> list[bytes | memoryview]:
    """The parts of a record of what has that *digest*.

    Where it is encrypted, it is *bound_to* what a reader has to know of it.
    """
    parts, nonce = packed.parts, _NO_NONCE
    if key:
        nonce, encrypted = key.encrypt(b"".join(parts), bound_to)
        parts = [encrypted]
    if packed.coding == pack.ZSTD or key:
        (part,) = parts
        digest = blake3(part).digest()
    checksum = digest[: pack.CHECKSUM_BYTES]
    size_bytes = sum(map(len, parts))
    return [
        pack.header(Record(packed.coding, key is not None, size_bytes, checksum, nonce)),
        *parts,
    ]


def decode(
    record: bytes | memoryview,
    digest: bytes | None,
    *,
    max_bytes: int,
    key: DataKey | None,
    bound_to: bytes,
) -> bytes | memoryview:
    """What is in *record*, of at most *max_bytes*, and of that *digest* if there is one.

    DamagedError if it is not what was written there, TamperedError if it is whole and yet not what
    the index means.
    """
    head = pack.parse_header(record)
    stored = memoryview(record)[pack.HEADER_BYTES :]
    if len(stored) != head.size_bytes:
        raise DamagedError(f"a record of {len(stored)} bytes, expected {head.size_bytes}")
    is_of_chunk = head.coding != pack.ZSTD and not head.is_encrypted
    data = _decoded(head.coding, stored, max_bytes) if is_of_chunk else stored
    found = blake3(data).digest()
    if found[: pack.CHECKSUM_BYTES] != head.checksum:
        raise DamagedError("a record's checksum is not that of its bytes")
    if head.is_encrypted != (key is not None):
        raise TamperedError("a record is encrypted otherwise than its index says")
    if not is_of_chunk:
        plain = key.decrypt(head.nonce, stored, bound_to) if key else stored
        data = _decoded(head.coding, plain, max_bytes)
        found = blake3(data).digest()
    if digest is not None and found != digest:
        raise TamperedError("a record is whole, but holds another chunk than its index says")
    return data


@lru_cache(maxsize=4)
def digest_of_zeros(size_bytes: int) -> bytes:
    """The digest of a chunk of zeros, which no record holds."""
    return blake3(bytes(size_bytes)).digest()


def file_key(path: str) -> FileKey | None:
    """The key in the file *path*; None if there is no path."""
    if not path:
        return None
    from grit_runtime.store.keys import FileKey  # needs an extra

    return FileKey(path)


class Unlocked:
    """Data keys, unwrapped with a file's key when they are first needed."""

    def __init__(self, file_key: FileKey | None) -> None:
        self._file_key = file_key
        self.has_key = file_key is not None
        self.of = lru_cache(maxsize=None)(self._unwrapped)

    def _unwrapped(self, key: Key | None) -> DataKey | None:
        if key is None:
            return None
        if self._file_key is None:
            raise WrongKeyError(
                f"it is encrypted with key {key.id}; name the file that has it with --key-file or "
                "the configuration's store_key"
            )
        return self._file_key.unwrap(key)


def _is_compressible(data: bytes | memoryview) -> bool:
    sample = data[:_SAMPLE_BYTES]
    return len(zstd.compress(sample, level=1)) < _WORTH_IT * len(sample)


def _runs(view: memoryview) -> list[Run]:
    """Where there are blocks that are not all zeros."""
    runs: list[Run] = []
    size_bytes = len(view)
    for start in range(0, size_bytes, pack.BLOCK_BYTES):
        end = min(start + pack.BLOCK_BYTES, size_bytes)
        # Of bytes: a memoryview is compared item by item. Most blocks show it at once.
        if view[start] or bytes(view[start:end]) != _ZEROS[: end - start]:
            is_next = runs and runs[-1][1] == start
            runs.append((runs.pop()[0] if is_next else start, end))
    return runs


def _decoded(coding: int, data: bytes | memoryview, max_bytes: int) -> bytes | memoryview:
    if coding == pack.PLAIN:
        return data
    if coding == pack.ZSTD:
        return _decompressed(data, max_bytes)
    size_bytes, runs, blocks = pack.parse_sparse_map(memoryview(data), max_bytes)
    chunk = memoryview(bytearray(size_bytes))
    at = 0
    for start, end in runs:
        chunk[start:end] = blocks[at : at + end - start]
        at += end - start
    return chunk


def _decompressed(data: bytes | memoryview, max_bytes: int) -> bytes:
    try:
        plain = zstd.ZstdDecompressor().decompress(data, max_bytes + 1)
    except zstd.ZstdError as error:
        raise DamagedError(f"a record cannot be decompressed: {error}") from None
    if len(plain) > max_bytes:
        raise DamagedError(f"a record holds more than {max_bytes} bytes")
    return plain
