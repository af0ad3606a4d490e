"""Copying memory of processes to files and back, on all usable cores.

The processes may be stopped or frozen.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque
from contextlib import ExitStack, suppress
from itertools import groupby, zip_longest
from mmap import mmap
from threading import Event, Thread, local

from grit_runtime.errors import CommandError
from grit_runtime.files import digest
from grit_runtime.host import linux
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import memory_range
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import Future
    from typing import Self

    from grit_runtime.model.memory_range import MemoryFile, MemoryRange

    Copy = Callable[["_Chunk", mmap], None]
    Place = tuple[str, tuple[tuple[int, int, int, int], ...]]

# Between two chunks a thread needs the interpreter's lock: with smaller chunks 32 cores wait for it
# most of the time. Much larger chunks are in no cache any more when they are hashed.
_CHUNK_BYTES = 4 << 20

_NEW = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD = os.O_RDONLY | os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)
for _name in ("process_vm_readv", "process_vm_writev"):
    _libc[_name].restype = ctypes.c_ssize_t


# Where memory that is being filled is looked at: the fill has passed what is not zero any more. It
# is copied this far behind that.
_PROBE_BYTES = 4096
_PROBE_EVERY_BYTES = 16 << 20
_MARGIN_BYTES = 16 << 20
_NEAR_PROBES = 64
_LOOK_EVERY_S = 0.05


class _Chunk(NamedTuple):
    """What is copied in one go."""

    pid: int
    address: int
    size_bytes: int
    fd: int
    offset: int


class _Piece(NamedTuple):
    """What is hashed in one go, and the file that it is of."""

    number: int
    chunks: list[_Chunk]
    kind: digest.Kind

    @property
    def end(self) -> int:
        """The address behind it in its process."""
        return self.chunks[-1].address + self.chunks[-1].size_bytes

    def place(self, path: str) -> Place:
        """What of a process is where in the file at *path*."""
        return path, tuple((c.pid, c.address, c.size_bytes, c.offset) for c in self.chunks)


class _IoVector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size_bytes", ctypes.c_size_t))


def save(
    files: Sequence[MemoryFile], *, to_disk: bool, copied: Mapping[Place, bytes] | None = None
) -> list[MemoryFile]:
    """Write memory of processes into files; the same with the digests of what was written.

    Blocks until that is done, or OSError. *to_disk* starts writing to the disk at once, for a
    caller that will sync; whoever reads the files soon finds them in memory all the same. What a
    `Follower` has *copied* is hashed in memory, and written again where that is not what was
    copied.
    """
    digests = _copy_all(files, _NEW, _saver(to_disk=to_disk), copied or {})
    return [file._replace(digest=digest) for file, digest in zip(files, digests, strict=True)]


def fill(saved: Sequence[MemoryFile]) -> list[str]:
    """Fill memory of processes from files; the digests of what the processes were given.

    They are for comparison with those of *saved*. Blocks until that is done, or OSError.
    """
    return _copy_all(saved, _OLD, _fill, {})


class Follower:
    """Copies memory of processes, while the block lasts, as it is being filled from below.

    *look* tells in which files what is there by now is to be saved. What was *copied* may change
    afterwards: `save` finds that.
    """

    def __init__(
        self, look: Callable[[], list[MemoryFile]], copied: dict[Place, bytes], *, to_disk: bool
    ) -> None:
        self._look = look
        self._copied = copied
        self._copy = _saver(to_disk=to_disk)
        self._ended = Event()
        self._thread = Thread(target=self._try_to_follow)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _try_to_follow(self) -> None:
        with suppress(OSError):  # `save` meets it again
            self._follow()

    def _follow(self) -> None:
        fronts: dict[int, int] = {}  # by pid, where the fill has come to
        begun: dict[str, MemoryFile] = {}  # by path
        left: dict[str, deque[_Piece]] = {}
        fds: dict[str, int] = {}
        with ExitStack() as stack, _Workers() as workers:
            while not self._ended.wait(_LOOK_EVERY_S):
                files = self._look()
                for pid, own in groupby(files, key=lambda file: file.pid):
                    ranges = memory_range.merged(there for file in own for there in file.ranges)
                    fronts[pid] = _front(pid, ranges, fronts.get(pid, 0))
                changed = [file for file in files if begun.get(file.path) != file]
                if changed:
                    workers.drop()  # or it would be written over what is copied from now on
                for file in changed:
                    if file.path not in fds:
                        fd = os.open(file.path, _NEW, 0o600)
                        fds[file.path] = stack.enter_context(closing_fd(fd))
                    # What lies within a file may be written from all threads at a time.
                    os.ftruncate(fds[file.path], file.size_bytes)
                    self._forget(file.path)
                    begun[file.path] = file
                    left[file.path] = deque(_pieces(0, file, fds[file.path]))
                for file in files:
                    pieces = left[file.path]
                    while pieces and pieces[0].end + _MARGIN_BYTES <= fronts[file.pid]:
                        workers.begin(self._copy_piece, pieces.popleft(), file.path)

    def _forget(self, path: str) -> None:
        for place in [place for place in self._copied if place[0] == path]:
            del self._copied[place]

    def _copy_piece(self, buffer: mmap, piece: _Piece, path: str) -> None:
        with suppress(OSError, CommandError):
            self._copied[piece.place(path)] = _hashed(piece, buffer, self._copy)


class _Workers:
    """A thread for each usable core, with a buffer of its own."""

    def __init__(self) -> None:
        from concurrent.futures import ThreadPoolExecutor  # few processes need it

        self._mine = local()
        self._begun: list[Future[None]] = []
        cores = len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(cores, initializer=self._make_buffer)

    def _make_buffer(self) -> None:
        self._mine.buffer = mmap(-1, _CHUNK_BYTES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for what is being done; what was only asked for is not done."""
        self._pool.shutdown(cancel_futures=True)

    def map(self, work: Callable[[mmap, _Piece], bytes], pieces: list[_Piece]) -> Iterator[bytes]:
        """The results of *work* on each piece, in order."""
        return self._pool.map(lambda piece: work(self._mine.buffer, piece), pieces)

    def begin(self, work: Callable[[mmap, _Piece, str], None], piece: _Piece, path: str) -> None:
        self._begun.append(self._pool.submit(lambda: work(self._mine.buffer, piece, path)))

    def drop(self) -> None:
        """Wait for what `begin` has begun, if it is being done; the rest is not done."""
        for one in [one for one in self._begun if not one.cancel()]:
            one.result()
        self._begun.clear()


def _copy_all(
    saved: Sequence[MemoryFile],
    flags: int,
    copy: Copy,
    copied: Mapping[Place, bytes],
) -> list[str]:
    def work(buffer: mmap, piece: _Piece) -> bytes:
        if before := (copied.get(piece.place(saved[piece.number].path))):
            now = _hashed(piece, buffer, _read)
            if now == before:
                return now
        return _hashed(piece, buffer, copy)

    digests: list[list[bytes]] = [[] for _ in saved]
    with ExitStack() as stack:
        files = []
        for number, one in enumerate(saved):
            fd = stack.enter_context(closing_fd(os.open(one.path, flags, 0o600)))
            if flags == _NEW:
                os.ftruncate(fd, one.size_bytes)
            files.append(_pieces(number, one, fd))
        # Alternating between files: the kernel writes to a file from one thread at a time.
        pieces = [piece for turn in zip_longest(*files) for piece in turn if piece]
        workers = stack.enter_context(_Workers())
        for piece, done in zip(pieces, workers.map(work, pieces), strict=True):
            digests[piece.number].append(done)
    kinds = [digest.kind(one.size_bytes, one.digest) for one in saved]
    return [digest.joined(kind, hashed) for kind, hashed in zip(kinds, digests, strict=True)]


def _hashed(piece: _Piece, buffer: mmap, copy: Copy) -> bytes:
    """Copy a piece; its digest."""
    hashed = piece.kind.new()
    with memoryview(buffer) as view:
        for chunk in piece.chunks:
            copy(chunk, buffer)
            hashed.update(view[: chunk.size_bytes])
    return hashed.digest()


def _front(pid: int, ranges: Sequence[MemoryRange], front: int) -> int:
    """The highest place in *ranges*, from *front* on, that is seen not to be zero.

    Memory that is to stay zero is passed once something above it is seen.
    """
    ahead = [
        address
        for there in ranges
        for address in range(there.start, there.end, _PROBE_EVERY_BYTES)
        if address > front
    ]
    probes = [*ahead[:_NEAR_PROBES], *ahead[_NEAR_PROBES::_NEAR_PROBES]]
    buffer = mmap(-1, _PROBE_BYTES)
    zeros = bytes(_PROBE_BYTES)
    with suppress(OSError, CommandError):  # it is not mapped any more
        for address in probes:
            _transfer("process_vm_readv", _Chunk(pid, address, _PROBE_BYTES, -1, 0), buffer)
            if buffer[:] != zeros:
                front = address
    return front


def _pieces(number: int, saved: MemoryFile, fd: int) -> list[_Piece]:
    kind = digest.kind(saved.size_bytes, saved.digest)
    chunks = _chunks(saved, fd, kind.piece_bytes)
    of_pieces = groupby(chunks, key=lambda chunk: chunk.offset // kind.piece_bytes)
    return [_Piece(number, list(chunks), kind) for _, chunks in of_pieces]


def _chunks(saved: MemoryFile, fd: int, piece_bytes: int) -> Iterator[_Chunk]:
    offset = 0
    for there in saved.ranges:
        address = there.start
        while address < there.end:
            in_piece = piece_bytes - offset % piece_bytes
            size_bytes = min(_CHUNK_BYTES, in_piece, there.end - address)
            yield _Chunk(saved.pid, address, size_bytes, fd, offset)
            address += size_bytes
            offset += size_bytes


def _saver(*, to_disk: bool) -> Copy:
    return _save_to_disk if to_disk else _save


def _read(chunk: _Chunk, buffer: mmap) -> None:
    _transfer("process_vm_readv", chunk, buffer)


def _save(chunk: _Chunk, buffer: mmap) -> None:
    _read(chunk, buffer)
    done = 0
    with memoryview(buffer) as view:
        while done < chunk.size_bytes:
            done += os.pwrite(chunk.fd, view[done : chunk.size_bytes], chunk.offset + done)


def _save_to_disk(chunk: _Chunk, buffer: mmap) -> None:
    _save(chunk, buffer)
    linux.start_writing(chunk.fd, chunk.offset, chunk.size_bytes)


def _fill(chunk: _Chunk, buffer: mmap) -> None:
    done = 0
    with memoryview(buffer) as view:
        while done < chunk.size_bytes:
            read = os.preadv(chunk.fd, [view[done : chunk.size_bytes]], chunk.offset + done)
            if read == 0:
                raise CommandError(f"memory of process {chunk.pid}: its file was cut")
            done += read
    _transfer("process_vm_writev", chunk, buffer)


def _transfer(name: str, chunk: _Chunk, buffer: mmap) -> None:
    """Copy between *buffer* and the process. Spec: process_vm_readv(2)."""
    here = _IoVector(ctypes.addressof(ctypes.c_char.from_buffer(buffer)), chunk.size_bytes)
    there = _IoVector(chunk.address, chunk.size_bytes)
    moved = _libc[name](
        chunk.pid,
        ctypes.byref(here),
        ctypes.c_ulong(1),
        ctypes.byref(there),
        ctypes.c_ulong(1),
        ctypes.c_ulong(0),
    )
    if moved < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}", f"process {chunk.pid}")
    if moved < chunk.size_bytes:
        raise CommandError(
            f"process {chunk.pid}: {moved} of {chunk.size_bytes} bytes at {chunk.address:#x} could "
            "be reached: the rest is not mapped"
        )
