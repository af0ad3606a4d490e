"""Digests of the files of a checkpoint.

A file of at most 64 MiB has ``sha256:HEX``, the digest of its bytes. A larger one has
``sha256-16m:HEX``, the sha256 of the digests (32 bytes each, in order) of its pieces of 16 MiB,
so that all cores can work on it. Only the size decides between the two.
"""

from __future__ import annotations

import errno
import hashlib
import os
from functools import lru_cache

from grit_runtime.errors import ImageError
from grit_runtime.files import confine
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

WHOLE = "sha256:"
PIECEWISE = "sha256-16m:"

MAX_WHOLE_BYTES = 64 << 20
PIECE_BYTES = 16 << 20
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


class Piece(NamedTuple):
    """What is hashed in one go."""

    offset: int
    size_bytes: int


def pieces(size_bytes: int) -> list[Piece]:
    """The pieces of a file, which are hashed separately."""
    if size_bytes <= MAX_WHOLE_BYTES:
        return [Piece(0, size_bytes)]
    return [
        Piece(offset, min(PIECE_BYTES, size_bytes - offset))
        for offset in range(0, size_bytes, PIECE_BYTES)
    ]


def joined(size_bytes: int, hashed: Sequence[bytes]) -> str:
    """Digest of a file from the sha256 of its pieces, in order."""
    if size_bytes <= MAX_WHOLE_BYTES:
        return WHOLE + hashed[0].hex()
    return PIECEWISE + hashlib.sha256(b"".join(hashed)).hexdigest()


def digest_tree(dir_fd: int, paths: Iterable[str]) -> dict[str, FileDigest]:
    """Size and digest of each regular file of *paths* beneath *dir_fd*, on all usable cores.

    Blocks until all are read. ImageError for what is no regular file, or shrinks meanwhile.
    """

    def open_file(path: str) -> int:
        return confine.open_regular(dir_fd, path)

    digests = {}
    large = {}
    for path in paths:
        with closing_fd(open_file(path)) as fd:
            size_bytes = os.fstat(fd).st_size
            if size_bytes > _SMALL_BYTES:
                large[path] = size_bytes
            else:
                digest = _sha256(fd, path, Piece(0, size_bytes))
                digests[path] = FileDigest(size_bytes, WHOLE + digest.hex())
    for path, text in _digests(open_file, large).items():
        digests[path] = FileDigest(large[path], text)
    return digests


def _digests(open_file: Callable[[str], int], sizes: dict[str, int]) -> dict[str, str]:
    for path, size_bytes in sizes.items():
        if size_bytes > MAX_FILE_BYTES:
            raise ImageError(
                f"{path!r} holds {size_bytes} bytes, expected at most {MAX_FILE_BYTES}"
            )
    places = [(path, piece) for path, size_bytes in sizes.items() for piece in pieces(size_bytes)]

    def sha256(path: str, piece: Piece) -> bytes:
        with closing_fd(open_file(path)) as fd:
            return _sha256(fd, path, piece)

    hashed: dict[str, list[bytes]] = {path: [] for path in sizes}
    for (path, _), one in zip(places, _mapped(sha256, places), strict=True):
        hashed[path].append(one)
    return {path: joined(size_bytes, hashed[path]) for path, size_bytes in sizes.items()}


def _mapped(
    sha256: Callable[[str, Piece], bytes], places: list[tuple[str, Piece]]
) -> Iterable[bytes]:
    if sum(piece.size_bytes for _, piece in places) < _MIN_PARALLEL_BYTES:
        return [sha256(*place) for place in places]
    from concurrent.futures import ThreadPoolExecutor  # only here is it worth it

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return pool.map(sha256, *zip(*places, strict=True))


@lru_cache(maxsize=4)
def _of_zeros(size_bytes: int) -> bytes:
    return hashlib.sha256(bytes(size_bytes)).digest()


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


def _sha256(fd: int, path: str, piece: Piece) -> bytes:
    if piece.size_bytes == PIECE_BYTES and _is_hole(fd, piece):
        return _of_zeros(piece.size_bytes)
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(_BUFFER_BYTES, piece.size_bytes)))
    offset, end = piece.offset, piece.offset + piece.size_bytes
    while offset < end:
        read_bytes = os.preadv(fd, [buffer[: end - offset]], offset)
        if read_bytes == 0:
            raise ImageError(f"{path!r} ends at byte {offset}, expected {end}: it was cut")
        digest.update(buffer[:read_bytes])
        offset += read_bytes
    return digest.digest()
