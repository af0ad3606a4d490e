"""The checkpoints in a store: finding and reading their indexes, and writing one.

An index is a magic word, the size (u32le) and bytes of its header, the size (u64le) and bytes of
its body, and the BLAKE3 of all of that. The body is compressed, and then encrypted where the
checkpoint is; it is bound to the header.
"""

from __future__ import annotations

import struct

from blake3 import blake3

from grit_runtime.errors import DamagedError, GritError, NotFoundError, TamperedError
from grit_runtime.model import stored
from grit_runtime.model.annotations import checkpoint_name
from grit_runtime.startup.named import NamedTuple
from grit_runtime.store import backend, locks
from grit_runtime.store import compression as zstd
from grit_runtime.wire.pack import NONCE_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.model.stored import Index
    from grit_runtime.proto.store_pb2 import Header
    from grit_runtime.store.backend import Backend
    from grit_runtime.store.keys import DataKey
    from grit_runtime.store.records import Unlocked

_PREFIX = "checkpoints/"
_MAGIC = b"grtIndx1"
_HEAD = struct.Struct("<8sI")
_BODY = struct.Struct("<Q")
_SUM_BYTES = 32
_HEADER_LIMIT_BYTES = 1 << 20
_LIMIT_BYTES = 256 << 20  # a chunk takes some 50: of 20 TiB


class Entry(NamedTuple):
    """A checkpoint in a store; *sha256* is its manifest's."""

    namespace: str
    name: str
    sha256: str
    written_s: float  # of the store's clock

    @property
    def object_name(self) -> str:
        return f"{_PREFIX}{self.namespace}/{self.name}/{self.sha256}"


def entries(store: Backend, namespace: str = "", name: str = "") -> list[Entry]:
    """What is in the store, the newest first: all, a namespace's or those of one *name*."""
    prefix = _PREFIX
    for word in (namespace, name):
        if word:
            prefix += f"{checkpoint_name(word)}/"
    found = []
    for one in store.listed(prefix):
        words = one.name.split("/")
        if len(words) == 4 and len(words[3]) == 64:
            found.append(Entry(words[1], words[2], words[3], one.written_s))
    return sorted(found, key=lambda entry: entry.written_s, reverse=True)


def find(store: Backend, namespace: str, name: str, sha256: str = "") -> Entry:
    """The newest checkpoint of that name, or the very one that *sha256* names."""
    for entry in entries(store, namespace, name):
        if sha256 in {"", entry.sha256}:
            return entry
    meant = f" with manifest sha256:{sha256}" if sha256 else ""
    raise NotFoundError(
        f"store {store.url} has no checkpoint {namespace}/{name}{meant}; grit ls shows what it has"
    )


def remove(store: Backend, namespace: str, name: str, sha256: str) -> None:
    """Remove the very checkpoint that *sha256* names, if it is there; its packs, if nothing else
    refers to them, go with the next collection.

    Not while one is under way: it has read already what refers to what.
    """
    for entry in entries(store, namespace, name):
        if entry.sha256 == sha256:
            with locks.shared(store, "removal"):
                store.remove(entry.object_name)


def read_header(store: Backend, entry: Entry) -> Header:
    """What an index says without a key."""
    try:
        data = store.read(entry.object_name, size_bytes=64 << 10)
        magic, size_bytes = _HEAD.unpack_from(data)
        if magic != _MAGIC or size_bytes > _HEADER_LIMIT_BYTES:
            raise DamagedError("it is no index")
        if size_bytes > len(data) - _HEAD.size:
            data = store.read(entry.object_name, size_bytes=_HEAD.size + size_bytes)
        return stored.parse_header(data[_HEAD.size : _HEAD.size + size_bytes])
    except struct.error:
        raise DamagedError(_named(store, entry, "it is cut")) from None
    except GritError as error:
        raise type(error)(_named(store, entry, str(error))) from None


def read(store: Backend, entry: Entry, unlocked: Unlocked) -> Index:
    """The whole index; DamagedError, TamperedError or WrongKeyError if that cannot be had."""
    data = store.read(entry.object_name, size_bytes=_LIMIT_BYTES)
    try:
        return _parsed(data, unlocked, entry.sha256)
    except struct.error:
        raise DamagedError(_named(store, entry, "it is cut")) from None
    except GritError as error:
        raise type(error)(_named(store, entry, str(error))) from None


def write(store: Backend, entry: Entry, header: Header, index: Index, key: DataKey | None) -> None:
    """Write an index, all of whose packs are in the store."""
    head = header.SerializeToString()
    body = zstd.compress(stored.dump_index(index))
    if key:
        nonce, encrypted = key.encrypt(body, head)
        body = nonce + encrypted
    data = b"".join((_HEAD.pack(_MAGIC, len(head)), head, _BODY.pack(len(body)), body))
    backend.put(store, entry.object_name, data + blake3(data).digest())


def _parsed(data: bytes, unlocked: Unlocked, sha256: str) -> Index:
    content, checksum = data[:-_SUM_BYTES], data[-_SUM_BYTES:]
    if blake3(content).digest() != checksum:
        raise DamagedError("its checksum is not that of its bytes")
    magic, size_bytes = _HEAD.unpack_from(content)
    if magic != _MAGIC:
        raise DamagedError("it is no index")
    head = content[_HEAD.size : _HEAD.size + size_bytes]
    header = stored.parse_header(head)
    (body_bytes,) = _BODY.unpack_from(content, _HEAD.size + size_bytes)
    body = content[_HEAD.size + size_bytes + _BODY.size :]
    if len(body) != body_bytes:
        raise DamagedError(f"its body has {len(body)} bytes, expected {body_bytes}")
    key = None
    if header.HasField("key"):
        key = unlocked.of(stored.Key(header.key.id, header.key.wrapped))
    if key:
        body = key.decrypt(body[:NONCE_BYTES], body[NONCE_BYTES:], head)
    try:
        plain = zstd.ZstdDecompressor().decompress(body, _LIMIT_BYTES)
    except zstd.ZstdError as error:
        raise DamagedError(f"it cannot be decompressed: {error}") from None
    index = stored.parse_index(plain)
    if stored.manifest_sha256(index) != sha256:
        raise TamperedError("its manifest is not the one that its name says")
    return index


def _named(store: Backend, entry: Entry, text: str) -> str:
    return f"store {store.url}: index of {entry.namespace}/{entry.name}: {text}"
