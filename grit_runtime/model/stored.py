"""What a store knows of a checkpoint: its index, read as the hostile input that it is. Pure."""

from __future__ import annotations

import hashlib
from typing import TypeVar

from google.protobuf.message import DecodeError

from grit_runtime.errors import DamagedError, NewerFormatError
from grit_runtime.proto import store_pb2
from grit_runtime.startup.named import NamedTuple

Message = TypeVar("Message", store_pb2.Index, store_pb2.Contents, store_pb2.Header)

# 2: chunks without their zeros, which the first readers do not know.
VERSION = 2
CHUNK_BYTES = 4 << 20  # as the pieces of a manifest's digests are
DIGEST_BYTES = 32
LOCKS = "locks/"
LOCK_LIVES_S = 600.0  # from when it was last written; its holder has died if it is older

_MAX_FILE_BYTES = 1 << 42
_MAX_PATH_BYTES = 4096
_MAX_RECORD_BYTES = CHUNK_BYTES + (64 << 10)  # what cannot be compressed grows a little


class Key(NamedTuple):
    """A checkpoint's data key, encrypted with the key of a file, which *id* names."""

    id: str
    wrapped: bytes


class Pack(NamedTuple):
    name: str
    key: Key | None  # what its records are encrypted with


class Chunk(NamedTuple):
    """4 MiB of a file, or what is left of it: a record in a pack, or zeros."""

    pack: int  # number in the index; -1 for zeros
    offset: int = 0
    record_bytes: int = 0
    digest: bytes = b""


ZEROS = Chunk(-1)


class StoredFile(NamedTuple):
    path: str
    chunks: tuple[Chunk, ...]


class Index(NamedTuple):
    """A checkpoint in a store."""

    manifest: bytes
    signature: bytes
    packs: tuple[Pack, ...]
    files: tuple[StoredFile, ...]


def manifest_sha256(index: Index) -> str:
    """What names the checkpoint."""
    return hashlib.sha256(index.manifest).hexdigest()


def chunk_sizes(size_bytes: int) -> list[int]:
    """The sizes of the chunks of a file."""
    whole, rest = divmod(size_bytes, CHUNK_BYTES)
    return [CHUNK_BYTES] * whole + ([rest] if rest else [])


def dump_index(index: Index) -> bytes:
    """The index, without the keys that no pack needs."""
    keys = list(dict.fromkeys(pack.key for pack in index.packs if pack.key))
    message = store_pb2.Index(
        manifest=index.manifest,
        signature=index.signature,
        keys=[store_pb2.Key(id=key.id, wrapped=key.wrapped) for key in keys],
    )
    for pack in index.packs:
        message.packs.add(name=pack.name, key=keys.index(pack.key) + 1 if pack.key else 0)
    for file in index.files:
        message.files.add(path=file.path, chunks=map(_dumped, file.chunks))
    return message.SerializeToString()


def dump_contents(chunks: list[Chunk]) -> bytes:
    """What is in a pack, which is their first, whatever its number in an index is."""
    own = (_dumped(chunk._replace(pack=0)) for chunk in chunks)
    return store_pb2.Contents(chunks=own).SerializeToString()


def parse_index(data: bytes) -> Index:
    """The index in *data*; DamagedError if it means nothing."""
    message = _parsed(store_pb2.Index(), data)
    keys = [Key(key.id, key.wrapped) for key in message.keys]
    packs = []
    for pack in message.packs:
        _require(pack.key <= len(keys), "a pack has a key that is not there")
        _require(is_pack_name(pack.name), f"{pack.name[:80]!r} names no pack")
        packs.append(Pack(pack.name, keys[pack.key - 1] if pack.key else None))
    files = []
    for file in message.files:
        _require(_is_path(file.path), f"{file.path[:80]!r} is no path of a file")
        chunks = tuple(_chunk(chunk, len(packs)) for chunk in file.chunks)
        files.append(StoredFile(file.path, chunks))
    _require(len({file.path for file in files}) == len(files), "a file is there twice")
    return Index(message.manifest, message.signature, tuple(packs), tuple(files))


def parse_contents(data: bytes) -> list[Chunk]:
    """What is in a pack; DamagedError if it means nothing."""
    message = _parsed(store_pb2.Contents(), data)
    return [_chunk(chunk, 1) for chunk in message.chunks]


def parse_header(data: bytes) -> store_pb2.Header:
    """The header of an index; NewerFormatError for one of a later version."""
    header = _parsed(store_pb2.Header(), data)
    if header.version > VERSION:
        raise NewerFormatError(
            f"its version is {header.version}, this grit reads up to {VERSION}; upgrade grit here"
        )
    _require(header.version > 0, f"its version is {header.version}")
    return header


def is_pack_name(name: str) -> bool:
    """Whether it is packs/WORD/WORD, and so leads nowhere else."""
    words = name.split("/")
    return (
        len(words) == 3 and words[0] == "packs" and all(w.isascii() and w.isalnum() for w in words)
    )


def _parsed(message: Message, data: bytes) -> Message:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise DamagedError(f"it cannot be read: {error}") from None
    return message


def _dumped(chunk: Chunk) -> store_pb2.Chunk:
    if chunk.pack < 0:
        return store_pb2.Chunk()
    return store_pb2.Chunk(
        pack=chunk.pack + 1,
        offset=chunk.offset,
        size_bytes=chunk.record_bytes,
        digest=chunk.digest,
    )


def _chunk(chunk: store_pb2.Chunk, packs: int) -> Chunk:
    if not chunk.pack:
        return ZEROS
    _require(chunk.pack <= packs, "a chunk is in a pack that is not there")
    _require(len(chunk.digest) == DIGEST_BYTES, "a chunk has no digest")
    _require(chunk.offset < _MAX_FILE_BYTES, "a chunk lies beyond any pack")
    _require(0 < chunk.size_bytes <= _MAX_RECORD_BYTES, "a chunk's record has an impossible size")
    return Chunk(chunk.pack - 1, chunk.offset, chunk.size_bytes, chunk.digest)


def _is_path(path: str) -> bool:
    names = path.split("/")
    plain = all(name not in {"", ".", ".."} and "\0" not in name for name in names)
    return plain and len(path.encode("utf-8", "surrogateescape")) <= _MAX_PATH_BYTES


def _require(holds: bool, otherwise: str) -> None:  # noqa: FBT001  the assertion comes first
    if not holds:
        raise DamagedError(otherwise)
