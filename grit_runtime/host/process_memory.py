"""Memory of processes, and its way into files and back, on all usable cores.

The processes need not run for it: they may be stopped or frozen.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import ExitStack
from mmap import mmap
from queue import Empty, SimpleQueue
from typing import NamedTuple, Self

from grit_runtime.errors import CommandError
from grit_runtime.host import linux
from grit_runtime.host.process import proc_text
from grit_runtime.model.memory_range import MemoryRange

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Copy = Callable[["_Chunk", mmap], None]

_CHUNK_BYTES = 2 << 20  # small enough to be in a cache still when it is copied on

_libc = ctypes.CDLL(None, use_errno=True)
for _name in ("process_vm_readv", "process_vm_writev"):
    _libc[_name].restype = ctypes.c_ssize_t


class Saved(NamedTuple):
    """Memory of a process that is, or is to be, in a file: its ranges, one after the other."""

    pid: int
    path: str
    ranges: tuple[MemoryRange, ...]

    @property
    def size_bytes(self) -> int:
        return sum(one.size_bytes for one in self.ranges)

    @classmethod
    def from_json(cls, pid: int, path: str, ranges: list[list[int]]) -> Self:
        """What a journal gives back of one."""
        return cls(pid, path, tuple(MemoryRange(*pair) for pair in ranges))


class _Chunk(NamedTuple):
    pid: int
    address: int
    size_bytes: int
    fd: int
    offset: int


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


def save(saved: Sequence[Saved], *, to_disk: bool) -> None:
    """Write memory of processes into new files. Blocks until that is done, or OSError.

    *to_disk* lets the disk begin at once, for a caller who will wait for it.
    """
    copy = _save_to_disk if to_disk else _save
    _copy_all(saved, os.O_WRONLY | os.O_CREAT | os.O_EXCL, copy)


def fill(saved: Sequence[Saved]) -> None:
    """Give processes the memory that is in files. Blocks until that is done, or OSError."""
    _copy_all(saved, os.O_RDONLY, _fill)


def _copy_all(saved: Sequence[Saved], flags: int, copy: Copy) -> None:
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  few processes need it

    with ExitStack() as stack:
        found = []
        for one in saved:
            fd = os.open(one.path, flags | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, fd)
            found += _chunks(one, fd)
        # From all files in turns: the kernel writes to a file from one thread at a time.
        chunks: SimpleQueue[_Chunk] = SimpleQueue()
        for chunk in sorted(found, key=lambda chunk: chunk.offset):
            chunks.put(chunk)
        workers = len(os.sched_getaffinity(0))
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        for done in [pool.submit(_work, chunks, copy) for _ in range(workers)]:
            done.result()


def _chunks(saved: Saved, fd: int) -> list[_Chunk]:
    chunks = []
    offset = 0
    for one in saved.ranges:
        for address in range(one.start, one.end, _CHUNK_BYTES):
            size_bytes = min(_CHUNK_BYTES, one.end - address)
            chunks.append(_Chunk(saved.pid, address, size_bytes, fd, offset))
            offset += size_bytes
    return chunks


def _work(chunks: SimpleQueue[_Chunk], copy: Copy) -> None:
    buffer = mmap(-1, _CHUNK_BYTES)
    while True:
        try:
            chunk = chunks.get_nowait()
        except Empty:
            return
        copy(chunk, buffer)


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
