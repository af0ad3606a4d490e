"""The size of memory that forked processes share with their parents, which a dump repeats.

CRIU forks a task from its parent after it has restored the parent's memory, and writes only the
child's pages that differ: the others stay shared, and count once against the container's limit.

Spec: checkpoint-restore/criu criu/mem.c check_cow_vmas, prepare_cow_vmas and
restore_priv_vma_content@2cf8f13.
"""

from __future__ import annotations

import mmap
import os
from contextlib import ExitStack

from grit_runtime.dump import images
from grit_runtime.files import confine
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from grit_runtime.model.dump import Dump

_PAGE_BYTES = os.sysconf("SC_PAGESIZE")
_PRIVATE = 1 << 6 | 1 << 9  # VMA_FILE_PRIVATE and VMA_ANON_PRIVATE of criu/include/image.h
_ANONYMOUS, _GROWS_DOWN, _HUGE = 0x20, 0x100, 0x40000  # flags of mmap(2)


def size_bytes(images_fd: int, dump: Dump) -> int:
    """How much of the dumped memory children share with their parents. Reads all candidates."""
    with ExitStack() as stack:
        tasks = {}
        for task in dump.tasks:
            if f"pagemap-{task.pid}.img" in dump.names:
                tasks[task.pid] = _Memory(images_fd, task.pid, stack)
        return sum(
            tasks[task.pid].shared_bytes(tasks[task.ppid])
            for task in dump.tasks
            if task.pid in tasks and task.ppid in tasks
        )


class _Memory:
    """The private memory of a task: the offset of each dumped page in the file of its pages."""

    def __init__(self, images_fd: int, pid: int, stack: ExitStack) -> None:
        memory = criu_image.entry(images.load(images_fd, f"mm-{pid}.img"), criu.mm_entry)
        self._areas = {
            (
                vma.start,
                vma.end,
                vma.flags & (_ANONYMOUS | _GROWS_DOWN),
                0 if vma.flags & _ANONYMOUS else vma.shmid,
            )
            for vma in memory.vmas
            if vma.status & _PRIVATE and not vma.flags & _HUGE
        }
        image = images.load(images_fd, f"pagemap-{pid}.img")
        self._pages = criu_image.present_pages(image)
        name = f"pages-{criu_image.pages(image)[0]}.img"
        with open(confine.open_regular(images_fd, name), "rb") as file:
            length = os.fstat(file.fileno()).st_size
            self._bytes = memoryview(b"")
            if length:
                mapped = stack.enter_context(mmap.mmap(file.fileno(), length, prot=mmap.PROT_READ))
                self._bytes = stack.enter_context(memoryview(mapped))

    def shared_bytes(self, parent: _Memory) -> int:
        """The size of the pages that are equal in areas which both tasks have."""
        common = sorted(area[:2] for area in self._areas & parent._areas)
        theirs = dict(parent._dumped(common))
        return _PAGE_BYTES * sum(
            theirs[address] == page for address, page in self._dumped(common) if address in theirs
        )

    def _dumped(self, areas: list[tuple[int, int]]) -> Iterator[tuple[int, memoryview]]:
        """The dumped pages in *areas*, which are in order, with their addresses."""
        offset = 0
        left = iter(areas)
        start, end = next(left, (0, 0))
        for run in self._pages:
            for number in range(run.number):
                address = run.start + number * _PAGE_BYTES
                while address >= end and (start, end) != (0, 0):
                    start, end = next(left, (0, 0))
                if start <= address < end:
                    yield address, self._bytes[offset : offset + _PAGE_BYTES]
                offset += _PAGE_BYTES
