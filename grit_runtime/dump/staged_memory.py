"""Saving and restoring, without CRIU, the device memory that the driver staged in processes.

CRIU moves memory with one thread, one process after the other; grit uses all cores. CRIU dumps the
staged ranges empty. Their content is stored as the pages of a parent dump (``parent/``), so that
CRIU alone can restore all of it too.
"""

from __future__ import annotations

import mmap
import os
from itertools import zip_longest

from grit_runtime.dump import images
from grit_runtime.errors import CommandError
from grit_runtime.files import confine
from grit_runtime.files.checkpoint_dir import PARENT
from grit_runtime.files.digest import FileDigest
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import memory_range
from grit_runtime.model.memory_range import MemoryFile, MemoryRange
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.tasks import process_memory, ptrace
from grit_runtime.tasks.ptrace import Syscall
from grit_runtime.wire import criu_image
from grit_runtime.wire.criu_image import Pages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from grit_runtime.model.dump import Dump
    from grit_runtime.tasks.ptrace_agent import Perform
    from grit_runtime.wire.criu_image import Image

_MIN_BYTES = 16 << 20  # CRIU moves this much in the time that it takes to stop a process
_SYS_MADVISE = 28  # on x86-64
_VMA_ANON_PRIVATE = 1 << 9  # criu/include/image.h
_PROT_WRITE = 2


def appeared(before: Mapping[int, Sequence[MemoryRange]]) -> dict[int, tuple[MemoryRange, ...]]:
    """The new memory, since *before*, of each process where it is large enough to be moved."""
    if not ptrace.IS_SUPPORTED:
        return {}
    new_ranges = {
        pid: memory_range.appeared(ranges, process_memory.anonymous(pid), min_bytes=_MIN_BYTES)
        for pid, ranges in before.items()
    }
    return {pid: tuple(ranges) for pid, ranges in new_ranges.items() if ranges}


def empty(saved: Sequence[MemoryFile], perform: Perform) -> None:
    """Free the saved memory of stopped processes; the mappings stay.

    What is written there later gets huge pages, if the node has any.
    """
    for ranges in zip_longest(*(file.ranges for file in saved)):
        places = [(file.pid, there) for file, there in zip(saved, ranges, strict=True) if there]
        perform(_advices(places, mmap.MADV_HUGEPAGE))  # may fail: not every kernel knows it
        results = perform(_advices(places, mmap.MADV_DONTNEED))
        for (pid, there), result in zip(places, results, strict=True):
            if result != 0:
                raise CommandError(
                    f"process {pid}: madvise of {there.size_bytes} bytes at {there.start:#x}: "
                    f"{os.strerror(-result)}"
                )


def add_to_dump(images_dir: str, saved: Sequence[MemoryFile]) -> dict[str, FileDigest]:
    """Make saved memory part of the dump in *images_dir*; its pids are the dump's.

    Returns the files with the memory, by their paths beneath that directory.
    """
    files = {}
    os.mkdir(f"{images_dir}/{PARENT}", 0o700)
    with closing_fd(confine.open_dir(images_dir)) as images_fd:
        for number, file in enumerate(saved, 1):
            pages = [_pages(there) for there in file.ranges]
            name = f"{PARENT}/pages-{number}.img"
            os.link(file.path, f"{images_dir}/{name}")
            files[name] = FileDigest(file.size_bytes, file.digest)
            own = images.load(images_fd, _pagemap_name(file.pid))
            _write(f"{images_dir}/{PARENT}", criu_image.pagemap(own.name, number, pages))
            _write(images_dir, criu_image.with_parent_pages(own, pages))
    return files


def in_dump(images_fd: int, dump: Dump) -> dict[str, MemoryFile]:
    """The memory of a dump's tasks that grit can fill in, by its files; pids are the dump's.

    Empty for a dump that is not as `add_to_dump` leaves one: CRIU restores it alone.
    """
    if PARENT not in dump.names:
        return {}
    files: dict[str, MemoryFile] = {}
    for task in dump.tasks:
        if _pagemap_name(task.pid) not in dump.names:
            continue
        staged = criu_image.parent_pages(images.load(images_fd, _pagemap_name(task.pid)))
        if not staged:
            continue
        path = _file_in_parent(images_fd, task.pid, staged)
        if path is None or path in files:
            return {}
        file_fd = confine.open_regular(images_fd, path)
        ranges = tuple(_range(pages) for pages in staged)
        files[path] = MemoryFile(task.pid, f"/proc/self/fd/{file_fd}", ranges)
    return files


def _file_in_parent(images_fd: int, pid: int, staged: list[Pages]) -> str | None:
    """Where a task's pages are that its own images add to; None if they are for CRIU to find."""
    with closing_fd(confine.descend(images_fd, (PARENT,))) as parent_fd:
        there = images.load(parent_fd, _pagemap_name(pid))
    mm = criu_image.entry(images.load(images_fd, f"mm-{pid}.img"), criu.mm_entry)
    is_ours = criu_image.present_pages(there) == staged
    if not (is_ours and all(_holds(mm, _range(pages)) for pages in staged)):
        return None
    return f"{PARENT}/pages-{criu_image.pages(there)[0]}.img"


def left_out(images_fd: int, saved: Iterable[MemoryFile]) -> dict[str, bytes]:
    """The images that make CRIU leave this memory empty."""
    own = [images.load(images_fd, _pagemap_name(file.pid)) for file in saved]
    return {
        image.name: criu_image.serialize(criu_image.without_parent_pages(image)) for image in own
    }


def _advices(places: Sequence[tuple[int, MemoryRange]], advice: int) -> list[Syscall]:
    return [
        Syscall(pid, _SYS_MADVISE, (there.start, there.size_bytes, advice)) for pid, there in places
    ]


def _holds(mm: criu.mm_entry, memory: MemoryRange) -> bool:
    """Whether a task has all of the range in one writable, private anonymous mapping."""
    return any(
        vma.start <= memory.start
        and memory.end <= vma.end
        and vma.status & _VMA_ANON_PRIVATE
        and vma.prot & _PROT_WRITE
        for vma in mm.vmas
    )


def _pages(memory: MemoryRange) -> Pages:
    return Pages(memory.start, memory.size_bytes // mmap.PAGESIZE)


def _range(pages: Pages) -> MemoryRange:
    return MemoryRange(pages.start, pages.start + pages.number * mmap.PAGESIZE)


def _pagemap_name(pid: int) -> str:
    return f"pagemap-{pid}.img"


def _write(directory: str, image: Image) -> None:
    with open(f"{directory}/{image.name}", "wb") as file:
        file.write(criu_image.serialize(image))
