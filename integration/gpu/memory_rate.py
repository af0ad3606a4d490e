"""How long this machine takes to copy memory into new pages, with all of its cores.

The least that filling a process's memory takes, whoever does it: a page is made, and written once.
"""

from __future__ import annotations

import ctypes
import os
import time
from concurrent.futures import ThreadPoolExecutor
from mmap import MADV_HUGEPAGE, mmap

from integration.gpu.results import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.gpu.cases import Case, Room

MEASURED = "measured"
PIECE_BYTES = 4 << 20


def filling(gib: int) -> Case:
    """*gib* GiB from memory that is there into memory that is not."""

    def run(_: Room) -> Outcome:
        cores = sorted(os.sched_getaffinity(0))
        size_bytes = (gib << 30) // len(cores) // PIECE_BYTES * PIECE_BYTES
        with ThreadPoolExecutor(len(cores)) as pool:
            sources = list(pool.map(lambda _: _made(size_bytes), cores))
            targets = [mmap(-1, size_bytes) for _ in cores]
            begin = time.monotonic()
            list(pool.map(_copy, sources, targets))
            seconds = time.monotonic() - begin
        return Outcome(MEASURED, {"restore memory": seconds})

    return run


def _made(size_bytes: int) -> mmap:
    memory = mmap(-1, size_bytes)
    memory.madvise(MADV_HUGEPAGE)
    ctypes.memset(_address(memory), 1, size_bytes)
    return memory


def _copy(source: mmap, target: mmap) -> None:
    target.madvise(MADV_HUGEPAGE)
    start, end = _address(source), _address(target)
    for offset in range(0, len(source), PIECE_BYTES):
        ctypes.memmove(end + offset, start + offset, PIECE_BYTES)


def _address(memory: mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
