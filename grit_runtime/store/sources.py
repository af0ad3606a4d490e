"""The files of a checkpoint that is pushed, in the portions in which its chunks are read."""

from __future__ import annotations

import hashlib

from grit_runtime.errors import DigestError
from grit_runtime.files import checkpoint_dir, digest
from grit_runtime.model import stored
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from grit_runtime.files.checkpoint_dir import Checkpoint
    from grit_runtime.model.manifest import File
    from grit_runtime.model.stored import Chunk

_PORTION_BYTES = 32 << 20


class Piece(NamedTuple):
    """A chunk of a file, where it is read."""

    file: int  # number in the manifest
    number: int
    size_bytes: int
    is_hashed_whole: bool = False  # the digest is the file's, and not made of its chunks'
    is_last: bool = False

    @property
    def offset(self) -> int:
        return self.number * stored.CHUNK_BYTES


class Read(NamedTuple):
    """What was read of a file: its chunks and their digests; its own, if hashed as a whole."""

    chunks: dict[int, Chunk]
    digests: dict[int, bytes]
    whole: list[bytes]


def portions(files: Sequence[File]) -> list[list[Piece]]:
    """All chunks, in portions that one thread reads; a file that is hashed as a whole is in one."""
    made: list[list[Piece]] = []
    together: list[Piece] = []
    size_bytes = 0
    for at, file in sorted(enumerate(files), key=lambda pair: -pair[1].size_bytes):
        sizes = stored.chunk_sizes(file.size_bytes)
        is_whole = file.digest.startswith(digest.WHOLE)
        own = [
            Piece(at, number, size, is_whole, number == len(sizes) - 1)
            for number, size in enumerate(sizes)
        ]
        units = [own] if is_whole else [[piece] for piece in own]
        for unit in units:
            unit_bytes = sum(piece.size_bytes for piece in unit)
            if together and size_bytes + unit_bytes > _PORTION_BYTES:
                made.append(together)
                together, size_bytes = [], 0
            together += unit
            size_bytes += unit_bytes
    return [*made, together] if together else made


def check_listing(dir_fd: int, path: str, sealed: Checkpoint) -> None:
    """DigestError if the directory is not what the manifest says, as far as can be seen unread.

    What an older version has hashed in other pieces than chunks is read now.
    """
    by_chunks = {
        file.path
        for file in sealed.manifest.files
        if file.digest.startswith((digest.PIECEWISE, digest.WHOLE))
    }
    wrong = checkpoint_dir.differences(dir_fd, sealed.manifest, unread=by_chunks)
    checkpoint_dir.refuse(path, wrong)


def check_digest(path: str, file: File, read: Read) -> None:
    """DigestError unless the digests of what was *read* are the manifest's."""
    digests = [read.digests[number] for number in sorted(read.digests)]
    if file.digest.startswith(digest.PIECEWISE):
        found = digest.joined(digest.kind(file.size_bytes, file.digest), digests)
    elif not file.digest.startswith(digest.WHOLE):
        return  # it was compared before
    else:  # an empty file has no chunk
        found = digest.WHOLE + (read.whole[0] if read.whole else hashlib.sha256().digest()).hex()
    if found != file.digest:
        raise DigestError(
            f"checkpoint {path}: {file.path} is damaged: digest {found}, expected {file.digest}; "
            "take it again"
        )
