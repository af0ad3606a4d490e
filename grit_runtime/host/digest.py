"""Digests of the files of a checkpoint.

A file of at most 64 MiB has ``sha256:HEX``, the digest of its bytes. A larger one has
``sha256-16m:HEX``, the sha256 of the digests (32 bytes each, in order) of its pieces of 16 MiB,
so that all cores can work on it. The size alone decides which.
"""

from __future__ import annotations

import hashlib
import os
from typing import NamedTuple

from grit_runtime.errors import ImageError
from grit_runtime.host import confine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

WHOLE = "sha256:"
PIECEWISE = "sha256-16m:"

MAX_WHOLE_BYTES = 64 << 20
PIECE_BYTES = 16 << 20
MAX_FILE_BYTES = 1 << 42  # more than a node's memory; a sparse file can claim 2**63

# Read with preadv and not mapped: a mapping is a tenth faster, and turns a bad sector into SIGBUS.
# Between two buffers a thread needs the interpreter, for which many cores wait if they are small.
_BUFFER_BYTES = 2 << 20
# Up to here a file is read when its size is looked up; opening it again would cost more.
_SMALL_BYTES = 128 << 10
# What hashes as long on one core as the thread pool takes to import, a few times over.
_MIN_PARALLEL_BYTES = 32 << 20


class FileDigest(NamedTuple):
    size_bytes: int
    digest: str


class Piece(NamedTuple):
    """What is hashed in one go."""

    offset: int
    size_bytes: int


def pieces(size_bytes: int) -> list[Piece]:
    """The pieces of a file, which are to be hashed one by one."""
    if size_bytes <= MAX_WHOLE_BYTES:
        return [Piece(0, size_bytes)]
    return [
        Piece(offset, min(PIECE_BYTES, size_bytes - offset))
        for offset in range(0, size_bytes, PIECE_BYTES)
    ]


def joined(size_bytes: int, hashed: Sequence[bytes]) -> str:
    """Digest of a file of which these are the pieces' sha256, in order."""
    if size_bytes <= MAX_WHOLE_BYTES:
        return WHOLE + hashed[0].hex()
    return PIECEWISE + hashlib.sha256(b"".join(hashed)).hexdigest()


def digest_fd(fd: int, size_bytes: int) -> str:
    """Digest of the first *size_bytes* of the regular file *fd*; ImageError if it has fewer."""
    return _digests(lambda _: os.dup(fd), {"file": size_bytes})["file"]


def digest_tree(dir_fd: int, paths: Iterable[str]) -> dict[str, FileDigest]:
    """Size and digest of each regular file of *paths* beneath *dir_fd*, on all usable cores.

    Blocks until all are read. ImageError for what is no regular file, or shrinks meanwhile.
    """

    def open_file(path: str) -> int:
        return confine.open_regular(dir_fd, path)

    found = {}
    large = {}
    for path in paths:
        fd = open_file(path)
        try:
            size_bytes = os.fstat(fd).st_size
            if size_bytes > _SMALL_BYTES:
                large[path] = size_bytes
            else:
                digest = _sha256(fd, path, Piece(0, size_bytes))
                found[path] = FileDigest(size_bytes, WHOLE + digest.hex())
        finally:
            os.close(fd)
    for path, text in _digests(open_file, large).items():
        found[path] = FileDigest(large[path], text)
    return found


def _digests(open_file: Callable[[str], int], sizes: dict[str, int]) -> dict[str, str]:
    for path, size_bytes in sizes.items():
        if size_bytes > MAX_FILE_BYTES:
            raise ImageError(
                f"{path!r} holds {size_bytes} bytes, expected at most {MAX_FILE_BYTES}"
            )
    places = [(path, piece) for path, size_bytes in sizes.items() for piece in pieces(size_bytes)]

    def sha256(path: str, piece: Piece) -> bytes:
        fd = open_file(path)
        try:
            return _sha256(fd, path, piece)
        finally:
            os.close(fd)

    hashed: dict[str, list[bytes]] = {path: [] for path in sizes}
    for (path, _), one in zip(places, _mapped(sha256, places), strict=True):
        hashed[path].append(one)
    return {path: joined(size_bytes, hashed[path]) for path, size_bytes in sizes.items()}


def _mapped(
    sha256: Callable[[str, Piece], bytes], places: list[tuple[str, Piece]]
) -> Iterable[bytes]:
    if sum(piece.size_bytes for _, piece in places) < _MIN_PARALLEL_BYTES:
        return [sha256(*place) for place in places]
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  only here is it worth it

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return pool.map(sha256, *zip(*places, strict=True))


def _sha256(fd: int, path: str, piece: Piece) -> bytes:
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
