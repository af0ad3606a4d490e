"""The threads of a push: each reads portions of the checkpoint and fills packs of its own."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock

from blake3 import blake3

from grit_runtime.errors import ImageError
from grit_runtime.files import chunks, confine
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import stored
from grit_runtime.model.stored import ZEROS, Chunk, Pack
from grit_runtime.startup.named import NamedTuple
from grit_runtime.store import records
from grit_runtime.store.levels import Levels
from grit_runtime.store.packs import OpenPack
from grit_runtime.store.sources import Read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from grit_runtime.model.stored import Key
    from grit_runtime.store.backend import Backend
    from grit_runtime.store.keys import DataKey
    from grit_runtime.store.sources import Piece

    Told = Callable[[int, int], None]

MAX_THREADS = 6  # each holds a pack, where the store takes packs only as a whole


class Target(NamedTuple):
    """Where packs go, and what is known to be there."""

    store: Backend
    prefix: str
    key: Key | None
    data_key: DataKey | None
    known: Mapping[bytes, tuple[Pack, Chunk]]  # by the digests of chunks


class Sending:
    """Chunks on their way into a store."""

    def __init__(self, target: Target, dir_fd: int, paths: Sequence[str], told: Told) -> None:
        self._target = target
        self._dir_fd = dir_fd
        self._paths = paths
        self._told = told
        self._levels = Levels()
        self._lock = Lock()
        self._stopped = Event()
        self._numbers: dict[Pack, int] = {}
        self._sent: dict[bytes, Chunk] = {}
        self.read = [Read({}, {}, []) for _ in paths]
        self.sent_bytes = 0
        self.reused_bytes = 0

    @property
    def packs(self) -> tuple[Pack, ...]:
        """Those that chunks are in, by their numbers."""
        return tuple(self._numbers)

    def run(self, portions: list[list[Piece]]) -> None:
        """Read and send all *portions*; the first error is raised when all threads have ended."""
        threads = min(len(os.sched_getaffinity(0)) + 1, MAX_THREADS)
        left = iter(portions)
        with ThreadPoolExecutor(threads) as pool:
            running = [pool.submit(self._work, left) for _ in range(threads)]
            try:
                for one in running:
                    one.result()
            finally:
                self._stopped.set()

    def _work(self, left: Iterator[list[Piece]]) -> None:
        buffer = bytearray(stored.CHUNK_BYTES)
        portion = self._next(left)
        while portion:
            target = self._target
            with OpenPack(target.store, target.prefix, target.data_key, self._levels) as pack:
                while portion and pack.size_bytes < target.store.pack_bytes:
                    self._send(portion, buffer, pack)
                    portion = self._next(left)

    def _next(self, left: Iterator[list[Piece]]) -> list[Piece] | None:
        with self._lock:
            return None if self._stopped.is_set() else next(left, None)

    def _send(self, portion: list[Piece], buffer: bytearray, pack: OpenPack) -> None:
        whole = hashlib.sha256()
        for piece in portion:
            if self._stopped.is_set():
                return
            if piece.number == 0:
                whole = hashlib.sha256()
            self._fill(buffer, piece)
            with memoryview(buffer)[: piece.size_bytes] as data:
                read = self.read[piece.file]
                if piece.is_hashed_whole:
                    whole.update(data)
                read.digests[piece.number], read.chunks[piece.number] = self._chunk(data, pack)
            if piece.is_hashed_whole and piece.is_last:
                read.whole.append(whole.digest())

    def _chunk(self, data: memoryview, pack: OpenPack) -> tuple[bytes, Chunk]:
        """The digest of *data*, and where in the store it is from now on."""
        size_bytes = len(data)
        if chunks.is_zeros(data):
            self._told(size_bytes, 0)
            return records.digest_of_zeros(size_bytes), ZEROS
        digest = blake3(data).digest()
        sent_bytes = 0
        if there := self._target.known.get(digest):
            chunk = there[1]._replace(pack=self._number(there[0]))
        elif digest in self._sent:
            chunk = self._sent[digest]
        else:
            chunk = pack.add(data, digest, self._number(Pack(pack.name, self._target.key)))
            sent_bytes = chunk.record_bytes
        with self._lock:
            self._sent[digest] = chunk
            self.sent_bytes += sent_bytes
            self.reused_bytes += 0 if sent_bytes else size_bytes
        self._told(size_bytes, sent_bytes)
        return digest, chunk

    def _number(self, pack: Pack) -> int:
        with self._lock:
            return self._numbers.setdefault(pack, len(self._numbers))

    def _fill(self, buffer: bytearray, piece: Piece) -> None:
        path = self._paths[piece.file]
        with closing_fd(confine.open_regular(self._dir_fd, path)) as fd:
            done = 0
            with memoryview(buffer) as view:
                while done < piece.size_bytes:
                    part = view[done : piece.size_bytes]
                    count = os.preadv(fd, [part], piece.offset + done)
                    if count == 0:
                        raise ImageError(f"{path!r} ends at byte {piece.offset + done}: it was cut")
                    done += count
