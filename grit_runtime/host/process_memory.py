"""Memory of processes, and its way into files and back, on all usable cores.

The processes need not run for it: they may be stopped or frozen.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from bisect import bisect
from contextlib import ExitStack
from itertools import groupby, zip_longest
from mmap import mmap
from threading import local
from typing import NamedTuple, Self

from grit_runtime.errors import CommandError
from grit_runtime.host import digest, linux
from grit_runtime.host.process import proc_text
from grit_runtime.model.memory_range import MemoryRange

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Copy = Callable[["_Chunk", mmap], None]

# Between two of them a thread needs the interpreter, which it shares with all others: with smaller
# ones 32 cores wait for it most of the time. Much larger ones are in no cache when they are hashed.
_CHUNK_BYTES = 4 << 20

_libc = ctypes.CDLL(None, use_errno=True)
for _name in ("process_vm_readv", "process_vm_writev"):
    _libc[_name].restype = ctypes.c_ssize_t


class Saved(NamedTuple):
    """Memory of a process that is, or is to be, in a file: its ranges, one after the other."""

    pid: int
    path: str
    ranges: tuple[MemoryRange, ...]
    digest: str = ""  # of the file, where it is known

    @property
    def size_bytes(self) -> int:
        return sum(one.size_bytes for one in self.ranges)

    @classmethod
    def from_json(cls, pid: int, path: str, ranges: list[list[int]], *rest: str) -> Self:
        """What a journal gives back of one."""
        return cls(pid, path, tuple(MemoryRange(*pair) for pair in ranges), *rest)


class _Chunk(NamedTuple):
    """What is copied in one go."""

    pid: int
    address: int
    size_bytes: int
    fd: int
    offset: int


class _Piece(NamedTuple):
    """What is hashed in one go, of which file."""

    number: int
    chunks: list[_Chunk]


class _IoVector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size_bytes", ctypes.c_size_t))


def anonymous(pid: int) -> list[MemoryRange]:
    """The private anonymous mappings of a process that it may write to. Spec: proc_pid_maps(5)."""
    ranges = []
    for line in proc_text(pid, "maps").splitlines():
        place, flags, _, _, inode, *name = line.split(None, 5)
        if flags.startswith("rw") and flags.endswith("p") and inode == "0" and not name:
            ranges.append(MemoryRange(*(int(number, 16) for number in place.split("-"))))
    return ranges


def save(saved: Sequence[Saved], *, to_disk: bool) -> list[str]:
    """Write memory of processes into new files; the digests of what was written.

    Blocks until that is done, or OSError. *to_disk* lets the disk begin at once, for a caller who
    will wait for it.
    """
    copy = _save_to_disk if to_disk else _save
    return _copy_all(saved, os.O_WRONLY | os.O_CREAT | os.O_EXCL, copy)


def fill(saved: Sequence[Saved]) -> None:
    """Give processes the memory that is in files. Blocks until that is done, or OSError."""
    _copy_all(saved, os.O_RDONLY, _fill, hashed=False)


def fill_and_hash(saved: Sequence[Saved]) -> list[str]:
    """The same, and the digests of what the processes were given."""
    return _copy_all(saved, os.O_RDONLY, _fill)


def _copy_all(saved: Sequence[Saved], flags: int, copy: Copy, *, hashed: bool = True) -> list[str]:
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  few processes need it

    mine = local()

    def make_buffer() -> None:
        mine.buffer = mmap(-1, _CHUNK_BYTES)

    def work(piece: _Piece) -> bytes:
        sha256 = hashlib.sha256()
        with memoryview(mine.buffer) as view:
            for chunk in piece.chunks:
                copy(chunk, mine.buffer)
                if hashed:
                    sha256.update(view[: chunk.size_bytes])
        return sha256.digest()

    digests: list[list[bytes]] = [[] for _ in saved]
    with ExitStack() as stack:
        files = []
        for number, one in enumerate(saved):
            fd = os.open(one.path, flags | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, fd)
            files.append(_pieces(number, one, fd))
        # Of all files in turns: the kernel writes to a file from one thread at a time.
        pieces = [piece for turn in zip_longest(*files) for piece in turn if piece]
        workers = len(os.sched_getaffinity(0))
        pool = stack.enter_context(ThreadPoolExecutor(workers, initializer=make_buffer))
        for piece, done in zip(pieces, pool.map(work, pieces), strict=True):
            digests[piece.number].append(done)
    return [digest.joined(one.size_bytes, d) for one, d in zip(saved, digests, strict=True)]


def _pieces(number: int, saved: Saved, fd: int) -> list[_Piece]:
    starts = [piece.offset for piece in digest.pieces(saved.size_bytes)]
    of_pieces = groupby(_chunks(saved, fd), key=lambda chunk: bisect(starts, chunk.offset))
    return [_Piece(number, list(chunks)) for _, chunks in of_pieces]


def _chunks(saved: Saved, fd: int) -> Iterator[_Chunk]:
    offset = 0
    for there in saved.ranges:
        address = there.start
        while address < there.end:
            in_piece = digest.PIECE_BYTES - offset % digest.PIECE_BYTES
            size_bytes = min(_CHUNK_BYTES, in_piece, there.end - address)
            yield _Chunk(saved.pid, address, size_bytes, fd, offset)
            address += size_bytes
            offset += size_bytes


def _save(chunk: _Chunk, buffer: mmap) -> None:
    _transfer("process_vm_readv", chunk, buffer)
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
    """Between our buffer and the process. Spec: process_vm_readv(2)."""
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
