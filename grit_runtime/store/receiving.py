"""The threads of a pull: each reads records, verifies the chunks in them and writes these."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from threading import Event, Lock

from blake3 import blake3

from grit_runtime.errors import DamagedError, GritError, NotFoundError
from grit_runtime.files import checkpoint_dir, confine, digest
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import stored
from grit_runtime.startup.named import NamedTuple
from grit_runtime.store import records
from grit_runtime.store.sending import MAX_THREADS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from grit_runtime.model.manifest import File, Manifest
    from grit_runtime.model.stored import Chunk, Index
    from grit_runtime.store.backend import Backend
    from grit_runtime.store.records import Unlocked
    from grit_runtime.store.sending import Told

# Records that follow one another in a pack are read in one go.
_READ_BYTES = 8 << 20


class _Wanted(NamedTuple):
    """A chunk that has to be received, and where it belongs."""

    file: File
    number: int
    size_bytes: int
    chunk: Chunk

    @property
    def offset(self) -> int:
        return self.number * stored.CHUNK_BYTES


class Receiving:
    """Chunks on their way from a store into a directory."""

    def __init__(
        self, store: Backend, index: Index, manifest: Manifest, unlocked: Unlocked, told: Told
    ) -> None:
        self._store = store
        self._index = index
        self._files = manifest.files
        self._unlocked = unlocked
        self._told = told
        self._lock = Lock()
        self._stopped = Event()
        self._wanted: list[_Wanted] = []
        self.received_bytes = 0

    @property
    def missing_bytes(self) -> int:
        """What has to be written."""
        return sum(wanted.size_bytes for wanted in self._wanted)

    def prepare(self, dir_fd: int) -> None:
        """Make all files, and look which chunks are there already. DamagedError for a bad index."""
        chunks = {file.path: file.chunks for file in self._index.files}
        for file in self._files:
            own = chunks[file.path]
            if file.digest.startswith(digest.PIECEWISE):
                self._check_index(file, own)
            is_new = self._make(dir_fd, file)
            with closing_fd(_opened(dir_fd, file.path, os.O_RDWR)) as fd:
                sizes = stored.chunk_sizes(file.size_bytes)
                for number, (size, chunk) in enumerate(zip(sizes, own, strict=True)):
                    wanted = _Wanted(file, number, size, chunk)
                    is_right = chunk is stored.ZEROS if is_new else _is_there(fd, wanted)
                    if is_right:
                        self._told(size, 0)
                    else:
                        self._wanted.append(wanted)

    def run(self, dir_fd: int) -> None:
        """Receive what is missing, compare all digests, and sync what was written."""
        zeros = [wanted for wanted in self._wanted if wanted.chunk is stored.ZEROS]
        for wanted in zeros:
            with closing_fd(_opened(dir_fd, wanted.file.path, os.O_RDWR)) as fd:
                os.pwrite(fd, bytes(wanted.size_bytes), wanted.offset)
            self._told(wanted.size_bytes, 0)
        threads = min(len(os.sched_getaffinity(0)) + 1, MAX_THREADS)
        left = self._reads()
        with ThreadPoolExecutor(threads) as pool:
            running = [pool.submit(self._work, dir_fd, left) for _ in range(threads)]
            try:
                for one in running:
                    one.result()
            finally:
                self._stopped.set()
        others = [file for file in self._files if not file.digest.startswith(digest.PIECEWISE)]
        if wrong := checkpoint_dir.corrupt_files(dir_fd, others):
            raise DamagedError(f"store {self._store.url}: {wrong[0]}; push the checkpoint again")

    def _check_index(self, file: File, chunks: tuple[Chunk, ...]) -> None:
        """Chunks are the pieces that a file's digest is made of: it shows if theirs are right."""
        sizes = stored.chunk_sizes(file.size_bytes)
        hashed = [
            chunk.digest or records.digest_of_zeros(size)
            for chunk, size in zip(chunks, sizes, strict=True)
        ]
        if digest.joined(digest.kind(file.size_bytes, file.digest), hashed) != file.digest:
            raise DamagedError(
                f"store {self._store.url}: the index's digests of {file.path} are not its "
                "manifest's; push the checkpoint again"
            )

    def _make(self, dir_fd: int, file: File) -> bool:
        """Whether the file was not there, and is all zeros."""
        *parents, name = file.path.split("/")
        fd = os.dup(dir_fd)
        for parent in parents:
            with closing_fd(fd) as parent_fd:
                if parent not in os.listdir(parent_fd):
                    os.mkdir(parent, mode=0o700, dir_fd=parent_fd)
                fd = confine.descend(parent_fd, [parent])
        with closing_fd(fd):
            try:
                made = confine.open_beneath(fd, name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            except FileExistsError:
                with closing_fd(_opened(fd, name, os.O_RDWR)) as there:
                    os.ftruncate(there, file.size_bytes)
                return False
            with closing_fd(made):
                os.ftruncate(made, file.size_bytes)
        return True

    def _reads(self) -> Iterator[list[_Wanted]]:
        """What is missing, in runs of records that lie together; small files and images first."""
        missing = [wanted for wanted in self._wanted if wanted.chunk is not stored.ZEROS]
        missing.sort(key=lambda w: (_rank(w.file), w.chunk.pack, w.chunk.offset))
        for _, together in groupby(missing, key=lambda w: (_rank(w.file), w.chunk.pack)):
            run: list[_Wanted] = []
            for wanted in together:
                if run and not _follows(run, wanted):
                    yield run
                    run = []
                run.append(wanted)
            yield run

    def _work(self, dir_fd: int, left: Iterator[list[_Wanted]]) -> None:
        while run := self._next(left):
            first, last = run[0].chunk, run[-1].chunk
            pack = self._index.packs[first.pack]
            size_bytes = last.offset + last.record_bytes - first.offset
            try:
                data = memoryview(self._store.read(pack.name, first.offset, size_bytes))
            except NotFoundError as error:
                raise DamagedError(f"{error}; push the checkpoint again") from None
            for wanted in run:
                start = wanted.chunk.offset - first.offset
                self._write(dir_fd, wanted, data[start : start + wanted.chunk.record_bytes])
            with self._lock:
                self.received_bytes += size_bytes

    def _next(self, left: Iterator[list[_Wanted]]) -> list[_Wanted] | None:
        with self._lock:
            return None if self._stopped.is_set() else next(left, None)

    def _write(self, dir_fd: int, wanted: _Wanted, record: memoryview) -> None:
        pack = self._index.packs[wanted.chunk.pack]
        chunk_digest = wanted.chunk.digest
        try:
            data = records.decode(
                record,
                chunk_digest,
                max_bytes=stored.CHUNK_BYTES,
                key=self._unlocked.of(pack.key),
                bound_to=chunk_digest,
            )
            if len(data) != wanted.size_bytes:
                raise DamagedError(f"a chunk has {len(data)} bytes, expected {wanted.size_bytes}")
        except GritError as error:
            where = f"store {self._store.url}: {pack.name} at byte {wanted.chunk.offset}"
            raise type(error)(f"{where}, for {wanted.file.path}: {error}") from None
        with closing_fd(_opened(dir_fd, wanted.file.path, os.O_WRONLY)) as fd:
            done = 0
            with memoryview(data) as view:
                while done < len(view):
                    done += os.pwrite(fd, view[done:], wanted.offset + done)
        self._told(wanted.size_bytes, wanted.chunk.record_bytes)


def _rank(file: File) -> int:
    """Memory comes last: a restore can do much before it needs that."""
    return 1 if "/parent/" in file.path else 0


def _follows(run: list[_Wanted], wanted: _Wanted) -> bool:
    first, last = run[0].chunk, run[-1].chunk
    end = wanted.chunk.offset + wanted.chunk.record_bytes
    return (
        last.offset + last.record_bytes == wanted.chunk.offset and end - first.offset <= _READ_BYTES
    )


def _is_there(fd: int, wanted: _Wanted) -> bool:
    """Whether a pull that was killed has written the chunk, and it is still right."""
    data = os.pread(fd, wanted.size_bytes, wanted.offset)
    expected = wanted.chunk.digest or records.digest_of_zeros(wanted.size_bytes)
    return len(data) == wanted.size_bytes and blake3(data).digest() == expected


def _opened(dir_fd: int, path: str, flags: int) -> int:
    """Fd of a regular file of the staging directory, which only this process writes."""
    return confine.open_beneath(dir_fd, path, flags)
