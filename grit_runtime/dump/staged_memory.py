"""Saving and restoring, without CRIU, the device memory that the driver staged in processes.

CRIU moves memory with one thread, one process after the other; grit uses all cores. CRIU dumps the
staged ranges empty. Their content is stored as the pages of a parent dump (``parent/``), so that
CRIU alone can restore all of it too. A process's memory is in several files, each in the parent of
the one before (``parent/parent/``), because the kernel writes to a file from one thread at a time.
"""

from __future__ import annotations

import mmap
import os
from itertools import chain, zip_longest

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

# Measured on 16 cores, ext4: 1, 2, 4, 8 files take 2, 5, 10, 15 GiB/s.
_MOST_FILES = 8
_STRIPE_BYTES = 32 << 20

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


def files(staged: Mapping[int, Sequence[MemoryRange]], prefix: str) -> list[MemoryFile]:
    """The files that memory of processes is to be saved in; their paths begin with *prefix*."""
    count = min(_MOST_FILES, len(os.sched_getaffinity(0)))
    return [
        MemoryFile(pid, f"{prefix}-{pid}-{number}", tuple(own))
        for pid, ranges in staged.items()
        for number, own in enumerate(memory_range.striped(ranges, count, _STRIPE_BYTES))
    ]


def empty(saved: Sequence[MemoryFile], perform: Perform) -> None:
    """Free the saved memory of stopped processes; the mappings stay.

    What is written there later gets huge pages, if the node has any.
    """
    whole = {
        pid: memory_range.merged(there for file in own for there in file.ranges)
        for pid, own in _by_pid(saved).items()
    }
    for ranges in zip_longest(*whole.values()):
        places = [(pid, there) for pid, there in zip(whole, ranges, strict=True) if there]
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
    digests = {}
    with closing_fd(confine.open_dir(images_dir)) as images_fd:
        for number, (pid, own) in enumerate(_by_pid(saved).items(), 1):
            dumped = images.load(images_fd, _pagemap_name(pid))
            pages = [list(map(_pages, file.ranges)) for file in own]
            _write(images_dir, criu_image.with_parent_pages(dumped, chain(*pages)))
            directory = ""
            for level, file in enumerate(own, 1):
                directory += f"{PARENT}/"
                os.makedirs(f"{images_dir}/{directory}", 0o700, exist_ok=True)
                name = f"{directory}pages-{number}.img"
                os.link(file.path, f"{images_dir}/{name}")
                digests[name] = FileDigest(file.size_bytes, file.digest)
                there = criu_image.pagemap(dumped.name, number, pages[level - 1])
                deeper = criu_image.with_parent_pages(there, chain(*pages[level:]))
                _write(f"{images_dir}/{directory}", deeper)
    return digests


def in_dump(images_fd: int, dump: Dump) -> dict[str, MemoryFile]:
    """The memory of a dump's tasks that grit can fill in, by its files; pids are the dump's.

    Empty for a dump that is not as `add_to_dump` leaves one: CRIU restores it alone.
    """
    if PARENT not in dump.names:
        return {}
    found: dict[str, MemoryFile] = {}
    for task in dump.tasks:
        if _pagemap_name(task.pid) not in dump.names:
            continue
        staged = criu_image.parent_pages(images.load(images_fd, _pagemap_name(task.pid)))
        if not staged:
            continue
        own = _files_in_parents(images_fd, task.pid, staged)
        if own is None or own.keys() & found.keys():
            return {}
        found |= own
    return found


def _files_in_parents(
    images_fd: int, pid: int, staged: list[Pages]
) -> dict[str, MemoryFile] | None:
    """Where a task's pages are that its own images add to; None if they are for CRIU to find."""
    mm = criu_image.entry(images.load(images_fd, f"mm-{pid}.img"), criu.mm_entry)
    if not all(_holds(mm, _range(pages)) for pages in staged):
        return None
    found = {}
    parents: tuple[str, ...] = ()
    while staged:
        parents += (PARENT,)
        with closing_fd(confine.descend(images_fd, parents)) as parent_fd:
            there = images.load(parent_fd, _pagemap_name(pid))
        own, deeper = criu_image.present_pages(there), criu_image.parent_pages(there)
        if not own or sorted((*own, *deeper)) != staged:
            return None
        path = "/".join((*parents, f"pages-{criu_image.pages(there)[0]}.img"))
        file_fd = confine.open_regular(images_fd, path)
        found[path] = MemoryFile(pid, f"/proc/self/fd/{file_fd}", tuple(map(_range, own)))
        staged = deeper
    return found


def _by_pid(saved: Iterable[MemoryFile]) -> dict[int, list[MemoryFile]]:
    by_pid: dict[int, list[MemoryFile]] = {}
    for file in saved:
        by_pid.setdefault(file.pid, []).append(file)
    return by_pid


def left_out(images_fd: int, saved: Iterable[MemoryFile]) -> dict[str, bytes]:
    """The images that make CRIU leave this memory empty."""
    own = [images.load(images_fd, _pagemap_name(pid)) for pid in _by_pid(saved)]
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
