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

_NO_NONCE = bytes(pack.NONCE_BYTES)

# A chunk whose first part does not get smaller than this is stored as it is.
_SAMPLE_BYTES = 64 << 10
_WORTH_IT = 0.9


class Packed(NamedTuple):
    """What a record is made of, as it is or compressed, and the seconds of a core for that."""

    coding: int
    data: bytes | memoryview
    seconds: float = 0.0


def packed(data: bytes | memoryview, level: int) -> Packed:
    """*data* compressed with *level*, if that is not 0 and there is something to gain."""
    if not level or not _is_compressible(data):
        return Packed(pack.PLAIN, data)
    begin = thread_time()
    return Packed(pack.ZSTD, zstd.compress(data, level=level), thread_time() - begin)


def encode(
    packed: Packed, digest: bytes, *, key: DataKey | None, bound_to: bytes
) -> tuple[bytes, bytes | memoryview]:
    """The header and the rest of a record of what has that *digest*, not compressed.

    Where it is encrypted, it is *bound_to* what a reader has to know of it.
    """
    coding, stored, _ = packed
    nonce = _NO_NONCE
    if key:
        nonce, stored = key.encrypt(stored, bound_to)
    is_plain = coding == pack.PLAIN and key is None
    checksum = (digest if is_plain else blake3(stored).digest())[: pack.CHECKSUM_BYTES]
    head = pack.header(Record(coding, key is not None, len(stored), checksum, nonce))
    return head, stored


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
    found = blake3(stored).digest()
    if found[: pack.CHECKSUM_BYTES] != head.checksum:
        raise DamagedError("a record's checksum is not that of its bytes")
    if head.is_encrypted != (key is not None):
        raise TamperedError("a record is encrypted otherwise than its index says")
    data: bytes | memoryview = stored
    if key:
        data = key.decrypt(head.nonce, stored, bound_to)
    if head.coding == pack.ZSTD:
        data = _decompressed(data, max_bytes)
    elif key is None:
        return _required(data, found, digest)
    return _required(data, blake3(data).digest(), digest)


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


def _required(data: bytes | memoryview, found: bytes, digest: bytes | None) -> bytes | memoryview:
    if digest is not None and found != digest:
        raise TamperedError("a record is whole, but holds another chunk than its index says")
    return data


def _is_compressible(data: bytes | memoryview) -> bool:
    sample = data[:_SAMPLE_BYTES]
    return len(zstd.compress(sample, level=1)) < _WORTH_IT * len(sample)


def _decompressed(data: bytes | memoryview, max_bytes: int) -> bytes:
    try:
        plain = zstd.ZstdDecompressor().decompress(data, max_bytes + 1)
    except zstd.ZstdError as error:
        raise DamagedError(f"a record cannot be decompressed: {error}") from None
    if len(plain) > max_bytes:
        raise DamagedError(f"a record holds more than {max_bytes} bytes")
    return plain
