"""Digests of the files of a checkpoint.

A file of at most 16 MiB has ``sha256:HEX``, the digest of its bytes. A larger one has
``blake3-4m:HEX``, the BLAKE3 of the digests (32 bytes each, in order) of its pieces of 4 MiB, so
that all cores can work on it, and a store's chunks are the pieces. Manifests before version 4 have
``sha256:HEX`` up to 64 MiB, and ``blake3-16m:HEX`` or ``sha256-16m:HEX`` of pieces of 16 MiB above.
"""

from __future__ import annotations

import errno
import hashlib
import os
from functools import lru_cache
from types import MappingProxyType

from grit_runtime.errors import ImageError
from grit_runtime.files import confine
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Protocol

    class Hash(Protocol):
        """What hashlib's and BLAKE3's hashes have in common."""

        def update(self, data: bytes | memoryview, /) -> object: ...

        def digest(self) -> bytes: ...


WHOLE = "sha256:"
PIECEWISE = "blake3-4m:"
PIECE_BYTES = 4 << 20

MAX_WHOLE_BYTES = 16 << 20
# Of manifests before version 4.
_PIECEWISE_BEFORE = ("blake3-16m:", "sha256-16m:")
_PIECE_BYTES_BEFORE = 16 << 20
_MAX_WHOLE_BYTES_BEFORE = 64 << 20

MAX_FILE_BYTES = 1 << 42  # more than a node's memory; a sparse file can claim 2**63

# Read with preadv and not mapped: a mapping is a tenth faster, and turns a bad sector into SIGBUS.
# Between two buffers a thread needs the interpreter's lock; with small ones many cores wait for it.
_BUFFER_BYTES = 2 << 20
# A file up to this size is read when its size is looked up; opening it again would cost more.
_SMALL_BYTES = 128 << 10
# Hashing this much on one core takes a few times as long as importing the thread pool.
_MIN_PARALLEL_BYTES = 32 << 20


class FileDigest(NamedTuple):
    size_bytes: int
    digest: str


class Kind(NamedTuple):
    """How a file is hashed: its digest's prefix, what hashes a piece of it, how large that is."""

    prefix: str
    new: Callable[[], Hash]
    piece_bytes: int


class Piece(NamedTuple):
    """What is hashed in one go."""

    offset: int
    size_bytes: int


def pieces(size_bytes: int, kind: Kind) -> list[Piece]:
    """The pieces of a file, which are hashed separately; an empty file has an empty one."""
    return [
        Piece(offset, min(kind.piece_bytes, size_bytes - offset))
        for offset in range(0, max(size_bytes, 1), kind.piece_bytes)
    ]


def kind(size_bytes: int, wanted: str = "") -> Kind:
    """How a file is hashed, so that the result can be compared with the digest that is *wanted*."""
    is_whole_before = wanted.startswith(WHOLE) and size_bytes <= _MAX_WHOLE_BYTES_BEFORE
    if size_bytes <= MAX_WHOLE_BYTES or is_whole_before:
        return Kind(WHOLE, hashlib.sha256, max(size_bytes, 1))
    from blake3 import blake3  # most checkpoints have no file so large

    blake, sha = _PIECEWISE_BEFORE
    if wanted.startswith(sha):
        return Kind(sha, hashlib.sha256, _PIECE_BYTES_BEFORE)
    if wanted.startswith(blake):
        return Kind(blake, blake3, _PIECE_BYTES_BEFORE)
    return Kind(PIECEWISE, blake3, PIECE_BYTES)


def load() -> None:
    """Import what digests need, for a process whose packages may be replaced before it does."""
    kind(MAX_FILE_BYTES)


def joined(kind: Kind, hashed: Sequence[bytes]) -> str:
    """Digest of a file from those of its pieces, in order."""
    if kind.prefix == WHOLE:
        return WHOLE + hashed[0].hex()
    whole = kind.new()
    whole.update(b"".join(hashed))
    return kind.prefix + whole.digest().hex()


def digest_tree(
    dir_fd: int, paths: Iterable[str], wanted: Mapping[str, str] = MappingProxyType({})
) -> dict[str, FileDigest]:
    """Size and digest of each regular file of *paths* beneath *dir_fd*, on all usable cores.

    They are for comparison with the digests *wanted*. Blocks until all are read. ImageError for
    what is no regular file, or shrinks meanwhile.
    """

    def open_file(path: str) -> int:
        return confine.open_regular(dir_fd, path)

    digests = {}
    large: dict[str, tuple[int, Kind]] = {}
    for path in paths:
        with closing_fd(open_file(path)) as fd:
            size_bytes = os.fstat(fd).st_size
            own = kind(size_bytes, wanted.get(path, ""))
            if size_bytes > _SMALL_BYTES:
                large[path] = size_bytes, own
            else:
                hashed = [_hash(fd, path, Piece(0, size_bytes), own)]
                digests[path] = FileDigest(size_bytes, joined(own, hashed))
    for path, text in _digests(open_file, large).items():
        digests[path] = FileDigest(large[path][0], text)
    return digests


def _digests(open_file: Callable[[str], int], files: dict[str, tuple[int, Kind]]) -> dict[str, str]:
    for path, (size_bytes, _) in files.items():
        if size_bytes > MAX_FILE_BYTES:
            raise ImageError(
                f"{path!r} holds {size_bytes} bytes, expected at most {MAX_FILE_BYTES}"
            )
    places = [
        (path, piece)
        for path, (size_bytes, own) in files.items()
        for piece in pieces(size_bytes, own)
    ]

    def hash_piece(path: str, piece: Piece) -> bytes:
        with closing_fd(open_file(path)) as fd:
            return _hash(fd, path, piece, files[path][1])

    hashed: dict[str, list[bytes]] = {path: [] for path in files}
    for (path, _), one in zip(places, _mapped(hash_piece, places), strict=True):
        hashed[path].append(one)
    return {path: joined(own, hashed[path]) for path, (_, own) in files.items()}


def _mapped(
    hash_piece: Callable[[str, Piece], bytes], places: list[tuple[str, Piece]]
) -> Iterable[bytes]:
    if sum(piece.size_bytes for _, piece in places) < _MIN_PARALLEL_BYTES:
        return [hash_piece(*place) for place in places]
    from concurrent.futures import ThreadPoolExecutor  # only here is it worth it

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return pool.map(hash_piece, *zip(*places, strict=True))


@lru_cache(maxsize=4)
def _of_zeros(size_bytes: int, kind: Kind) -> bytes:
    hashed = kind.new()
    hashed.update(bytes(size_bytes))
    return hashed.digest()


def _is_hole(fd: int, piece: Piece) -> bool:
    end = piece.offset + piece.size_bytes
    if os.fstat(fd).st_size < end:
        return False
    try:
        return os.lseek(fd, piece.offset, os.SEEK_DATA) >= end
    except OSError as error:
        if error.errno != errno.ENXIO:  # no data from there to the end
            raise
        return True


def _hash(fd: int, path: str, piece: Piece, kind: Kind) -> bytes:
    if kind.prefix != WHOLE and piece.size_bytes == kind.piece_bytes and _is_hole(fd, piece):
        return _of_zeros(piece.size_bytes, kind)
    digest = kind.new()
    buffer = memoryview(bytearray(min(_BUFFER_BYTES, piece.size_bytes)))
    offset, end = piece.offset, piece.offset + piece.size_bytes
    while offset < end:
        read_bytes = os.preadv(fd, [buffer[: end - offset]], offset)
        if read_bytes == 0:
            raise ImageError(f"{path!r} ends at byte {offset}, expected {end}: it was cut")
        digest.update(buffer[:read_bytes])
        offset += read_bytes
    return digest.digest()
