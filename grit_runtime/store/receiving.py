"""The threads that bring a checkpoint into a directory: each reads chunks and writes these.

Where chunks come from is a source: a store, whose index has a digest of each chunk, or a peer,
which has only those of whole files. Without a chunk's digest the file's decides at the end.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock

from blake3 import blake3

from grit_runtime.errors import DamagedError
from grit_runtime.files import checkpoint_dir, chunks, confine, digest, fdcopy
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import stored
from grit_runtime.startup.named import NamedTuple
from grit_runtime.store import records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from typing import Protocol

    from grit_runtime.model.manifest import File
    from grit_runtime.store.sending import Told

    # Each chunk's BLAKE3, and what of it went over the link.
    Apart = Callable[[Sequence["Wanted"]], Iterator[tuple[bytes, int]]]

    class Source(Protocol):
        """Where a checkpoint comes from."""

        name: str  # for messages: "store /mnt/store"
        remedy: str  # what is to be done about what is damaged there
        manifest: bytes
        signature: bytes  # empty if there is none

        def digests(self, file: File) -> list[bytes]:
            """The BLAKE3 of each of its chunks; empty where it is not known beforehand."""

        def runs(self, wanted: list[Wanted]) -> Iterable[Sequence[Wanted]]:
            """All that is *wanted*, in the portions and the order in which it is best read."""

        def receive(self, run: Sequence[Wanted]) -> Iterator[Received]:
            """The chunks of a portion, of the right sizes and known digests; from any thread."""

        def apart(self, into: Into, size_bytes: int) -> AbstractContextManager[Apart | None]:
            """Whoever brings chunks into a directory in a process of his own.

            None if so much comes as soon without. Used by one thread.
            """


_FEW_THREADS, _CORES_A_THREAD, _MOST_THREADS = 8, 2, 16


class Into(NamedTuple):
    """The directory that chunks are brought into."""

    fd: int
    is_awaited: bool  # by a restore: it reads them from the kernel's cache before they are durable


class Wanted(NamedTuple):
    """A chunk that has to be received, and where it belongs."""

    file: File
    number: int
    size_bytes: int
    digest: bytes  # empty where only the file's is known

    @property
    def offset(self) -> int:
        return self.number * stored.CHUNK_BYTES

    @property
    def is_zeros(self) -> bool:
        return self.digest == records.digest_of_zeros(self.size_bytes)


class Received(NamedTuple):
    """A chunk: its bytes, or None for zeros; *moved_bytes* went over the link."""

    wanted: Wanted
    data: bytes | memoryview | None
    moved_bytes: int


class Receiving:
    """Chunks on their way from a source into a directory."""

    def __init__(self, source: Source, files: Sequence[File], told: Told) -> None:
        self._source = source
        self._files = files
        self._told = told
        self._lock = Lock()
        self._stopped = Event()
        self._wanted: list[Wanted] = []
        self._kept: list[Wanted] = []  # by a pull that was killed, without digests of their own
        self._hashed: dict[str, dict[int, bytes]] = {}
        self.received_bytes = 0

    @property
    def missing_bytes(self) -> int:
        """What has to be written."""
        return sum(wanted.size_bytes for wanted in self._wanted)

    def prepare(self, dir_fd: int) -> None:
        """Make all files, and look which chunks are there already. DamagedError for bad digests."""
        for file in self._files:
            sizes = stored.chunk_sizes(file.size_bytes)
            digests = self._source.digests(file) or [b""] * len(sizes)
            own = [
                Wanted(file, number, size, one)
                for number, (size, one) in enumerate(zip(sizes, digests, strict=True))
            ]
            is_new = _make(dir_fd, file)
            with closing_fd(_opened(dir_fd, file.path, os.O_RDWR)) as fd:
                if is_new:
                    there = {wanted for wanted in own if wanted.is_zeros}
                else:
                    there = self._there(dir_fd, fd, file, own)
            self._wanted += [wanted for wanted in own if wanted not in there]
            for wanted in there:
                self._told(wanted.size_bytes, 0)

    def run(self, into: Into, without_memory: Callable[[], None]) -> None:
        """Receive what is missing, and compare all digests.

        Memory comes last: *without_memory* is called when all else is there and verified.
        """
        self._bring(into, [file for file in self._files if not _is_memory(file)])
        without_memory()
        self._bring(into, [file for file in self._files if _is_memory(file)])

    def _bring(self, into: Into, files: list[File]) -> None:
        paths = {file.path for file in files}
        self._receive(into, [wanted for wanted in self._wanted if wanted.file.path in paths])
        wrong = self._wrong(into.fd, files)
        if again := [wanted for wanted in self._kept if wanted.file in wrong]:
            self._receive(into, again)
            wrong = self._wrong(into.fd, files)
        for line in wrong.values():
            raise DamagedError(f"{self._source.name}: {line}; {self._source.remedy}")

    def _there(self, dir_fd: int, fd: int, file: File, own: list[Wanted]) -> set[Wanted]:
        """Which chunks a killed pull has left whole, as far as can be said now."""
        if not own or own[0].digest:
            return {wanted for wanted in own if _is_right(fd, wanted)}
        if not file.digest.startswith(digest.PIECEWISE):
            return set() if checkpoint_dir.corrupt_files(dir_fd, [file]) else set(own)
        there = {wanted for wanted in own if _is_whole(fd, wanted)}
        for wanted in there:
            data = os.pread(fd, wanted.size_bytes, wanted.offset)
            self._hashed.setdefault(file.path, {})[wanted.number] = blake3(data).digest()
            self._kept.append(wanted)
        return there

    def _receive(self, into: Into, wanted: list[Wanted]) -> None:
        known_zeros = [one for one in wanted if one.is_zeros]
        for one in known_zeros:
            self._write(into, Received(one, None, 0))
        left = iter(self._source.runs([one for one in wanted if not one.is_zeros]))
        cores = len(os.sched_getaffinity(0))
        few = min(cores + 1, _FEW_THREADS)
        threads = max(few, min(cores // _CORES_A_THREAD, _MOST_THREADS))
        with ThreadPoolExecutor(threads) as pool:
            size_bytes = sum(one.size_bytes for one in wanted)
            running = [pool.submit(self._work, into, left, size_bytes) for _ in range(threads)]
            try:
                for thread in running:
                    thread.result()
            finally:
                self._stopped.set()
        self._stopped.clear()

    def _work(self, into: Into, left: Iterator[Sequence[Wanted]], size_bytes: int) -> None:
        with self._source.apart(into, size_bytes) as apart:
            while run := self._next(left):
                if apart:
                    for wanted, (one, moved_bytes) in zip(run, apart(run), strict=True):
                        self._done(wanted, one, moved_bytes)
                else:
                    for received in self._source.receive(run):
                        self._write(into, received)

    def _next(self, left: Iterator[Sequence[Wanted]]) -> Sequence[Wanted] | None:
        with self._lock:
            return None if self._stopped.is_set() else next(left, None)

    def _write(self, into: Into, received: Received) -> None:
        wanted = received.wanted
        data = write(into, received)
        one = b"" if wanted.digest else blake3(data).digest()
        self._done(wanted, one, received.moved_bytes)

    def _done(self, wanted: Wanted, one: bytes, moved_bytes: int) -> None:
        """Keep a chunk's digest, if the file's is made of it and nobody has compared it."""
        if not wanted.digest and wanted.file.digest.startswith(digest.PIECEWISE):
            self._hashed.setdefault(wanted.file.path, {})[wanted.number] = one
        with self._lock:
            self.received_bytes += moved_bytes
        self._told(wanted.size_bytes, moved_bytes)

    def _wrong(self, dir_fd: int, files: list[File]) -> dict[File, str]:
        """What is wrong with *files* whose chunks had no digests to be compared with."""
        others = {
            file.path: file.digest for file in files if not file.digest.startswith(digest.PIECEWISE)
        }
        read = digest.digest_tree(dir_fd, others, others)
        found = {path: one.digest for path, one in read.items()}
        for file in files:
            if own := self._hashed.get(file.path):
                hashed = [own[number] for number in sorted(own)]
                kind = digest.kind(file.size_bytes, file.digest)
                found[file.path] = digest.joined(kind, hashed)
        compared = [file for file in files if file.path in found]
        lines = [checkpoint_dir.digest_mismatches([one], [found[one.path]]) for one in compared]
        return {file: line for file, own in zip(compared, lines, strict=True) for line in own}


def write(into: Into, received: Received) -> bytes | memoryview:
    """Write a chunk where it belongs, unless it is zeros and that is a hole; its bytes."""
    wanted, data, _ = received
    with closing_fd(_opened(into.fd, wanted.file.path, os.O_RDWR)) as fd:
        is_there = data is None and _is_hole(fd, wanted)
        if data is None:
            data = bytes(wanted.size_bytes)
        if not is_there:
            # It is synced in the end, by whom no restore waits for.
            fdcopy.write_out(fd, data, wanted.offset, to_disk=not into.is_awaited)
    return data


def _is_memory(file: File) -> bool:
    return checkpoint_dir.is_memory(file.path)


def _make(dir_fd: int, file: File) -> bool:
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


def _is_right(fd: int, wanted: Wanted) -> bool:
    """Whether a pull that was killed has written the chunk, and it is still right."""
    data = os.pread(fd, wanted.size_bytes, wanted.offset)
    return len(data) == wanted.size_bytes and blake3(data).digest() == wanted.digest


def _is_whole(fd: int, wanted: Wanted) -> bool:
    """Whether the chunk has data everywhere: what was killed while it wrote one leaves a hole."""
    end = chunks.next_hole(fd, wanted.offset)
    return not _is_hole(fd, wanted) and end >= wanted.offset + wanted.size_bytes


def _is_hole(fd: int, wanted: Wanted) -> bool:
    return chunks.next_data(fd, wanted.offset) >= wanted.offset + wanted.size_bytes


def _opened(dir_fd: int, path: str, flags: int) -> int:
    """Fd of a regular file of the staging directory, which only this process writes."""
    return confine.open_beneath(dir_fd, path, flags)
