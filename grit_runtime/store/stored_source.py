"""A store as a source of a checkpoint's chunks."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import groupby

from grit_runtime.errors import DamagedError, GritError, NotFoundError, WrongKeyError
from grit_runtime.files import checkpoint_dir, digest
from grit_runtime.model import manifest as manifests
from grit_runtime.model import stored
from grit_runtime.store import records
from grit_runtime.store.receiving import Received

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from grit_runtime.model.manifest import File
    from grit_runtime.model.stored import Chunk, Index
    from grit_runtime.store.backend import Backend
    from grit_runtime.store.catalog import Entry
    from grit_runtime.store.receiving import Into, Wanted
    from grit_runtime.store.records import Unlocked

# Records that follow one another in a pack are read in one go.
_READ_BYTES = 8 << 20


class StoredSource:
    """The checkpoint of an index in a store; DamagedError if that is not of its manifest's files.

    Each file has to have as many chunks as it is long.
    """

    remedy = "push the checkpoint again"

    def __init__(self, store: Backend, entry: Entry, index: Index, unlocked: Unlocked) -> None:
        self.name = f"store {store.url}"
        self.manifest = index.manifest
        self.signature = index.signature
        self.damaged: set[str] = set()  # packs in which something was found that is not right
        self._store = store
        self._packs = index.packs
        self._unlocked = unlocked
        self._chunks = {file.path: file.chunks for file in index.files}
        files = manifests.parse(index.manifest).files
        expected = {file.path: len(stored.chunk_sizes(file.size_bytes)) for file in files}
        if {path: len(own) for path, own in self._chunks.items()} != expected:
            raise DamagedError(
                f"{self.name}: the index of {entry.namespace}/{entry.name} is not of its "
                f"manifest's files; {self.remedy}"
            )

    def digests(self, file: File) -> list[bytes]:
        """Chunks are the pieces that a file's digest is made of: it shows if theirs are right."""
        sizes = stored.chunk_sizes(file.size_bytes)
        hashed = [
            chunk.digest or records.digest_of_zeros(size)
            for chunk, size in zip(self._chunks[file.path], sizes, strict=True)
        ]
        if file.digest.startswith(digest.PIECEWISE):
            kind = digest.kind(file.size_bytes, file.digest)
            if digest.joined(kind, hashed) != file.digest:
                raise DamagedError(
                    f"{self.name}: the index's digests of {file.path} are not its manifest's; "
                    f"{self.remedy}"
                )
        return hashed

    def runs(self, wanted: list[Wanted]) -> Iterator[list[Wanted]]:
        """In runs of records that lie together; small files and images first."""

        def place(one: Wanted) -> tuple[int, int, int]:
            chunk = self._chunk(one)
            return rank(one.file), chunk.pack, chunk.offset

        for _, together in groupby(sorted(wanted, key=place), key=lambda one: place(one)[:2]):
            run: list[Wanted] = []
            for one in together:
                if run and not self._follows(run, one):
                    yield run
                    run = []
                run.append(one)
            yield run

    def apart(self, _into: Into, _size_bytes: int) -> AbstractContextManager[None]:
        return nullcontext()

    def receive(self, run: Sequence[Wanted]) -> Iterator[Received]:
        first, last = self._chunk(run[0]), self._chunk(run[-1])
        size_bytes = last.offset + last.record_bytes - first.offset
        try:
            read = self._store.read(self._packs[first.pack].name, first.offset, size_bytes)
        except NotFoundError as error:
            raise DamagedError(f"{error}; {self.remedy}") from None
        records_read = memoryview(read)
        for wanted in run:
            chunk = self._chunk(wanted)
            start = chunk.offset - first.offset
            data = self._decoded(wanted, records_read[start : start + chunk.record_bytes])
            yield Received(wanted, data, chunk.record_bytes)

    def _decoded(self, wanted: Wanted, record: memoryview) -> bytes | memoryview:
        chunk = self._chunk(wanted)
        pack = self._packs[chunk.pack]
        try:
            data = records.decode(
                record,
                chunk.digest,
                max_bytes=stored.CHUNK_BYTES,
                key=self._unlocked.of(pack.key),
                bound_to=chunk.digest,
            )
            if len(data) != wanted.size_bytes:
                raise DamagedError(f"a chunk has {len(data)} bytes, expected {wanted.size_bytes}")
        except GritError as error:
            if not isinstance(error, WrongKeyError):
                self.damaged.add(pack.name)
            where = f"{self.name}: {pack.name} at byte {chunk.offset}"
            raise type(error)(f"{where}, for {wanted.file.path}: {error}") from None
        return data

    def _chunk(self, wanted: Wanted) -> Chunk:
        return self._chunks[wanted.file.path][wanted.number]

    def _follows(self, run: list[Wanted], wanted: Wanted) -> bool:
        first, last, chunk = (self._chunk(one) for one in (run[0], run[-1], wanted))
        end = chunk.offset + chunk.record_bytes
        return last.offset + last.record_bytes == chunk.offset and end - first.offset <= _READ_BYTES


def rank(file: File) -> int:
    """Memory comes last: a restore can do much before it needs that."""
    return int(checkpoint_dir.is_memory(file.path))
