"""Saving and restoring, without CRIU, large memory of processes: heaps, and what was on their GPUs.

CRIU moves memory with one thread, one process after the other; grit uses all cores. CRIU dumps the
ranges empty. Their content is stored as the pages of a parent dump (``parent/``), so that
CRIU alone can restore all of it too. A process's memory is in several files, each in the parent of
the one before (``parent/parent/``), because the kernel writes to a file from one thread at a time.
"""

from __future__ import annotations

import mmap
import os
from bisect import bisect
from itertools import chain

from grit_runtime.dump import images
from grit_runtime.errors import CommandError
from grit_runtime.files import confine
from grit_runtime.files.checkpoint_dir import PARENT
from grit_runtime.files.digest import FileDigest
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import memory_range
from grit_runtime.model.manifest import Memory
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
_LARGE_BYTES = 16 << 20  # of a mapping that the manifest names
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


def files(ranges: Mapping[int, Sequence[MemoryRange]], prefix: str) -> list[MemoryFile]:
    """The files that memory of processes is to be saved in; their paths begin with *prefix*."""
    count = min(_MOST_FILES, len(os.sched_getaffinity(0)))
    return [
        MemoryFile(pid, f"{prefix}-{pid}-{number}", tuple(own))
        for pid, of_process in ranges.items()
        for number, own in enumerate(memory_range.striped(of_process, count, _STRIPE_BYTES))
    ]


def empty(saved: Sequence[MemoryFile], perform: Perform, *, huge_pages: bool) -> None:
    """Free the saved memory of stopped processes; the mappings stay.

    With *huge_pages* what is written there later gets these, if the node has any: only for mappings
    that are not the program's own, since that stays.
    """
    places = [
        (pid, there)
        for pid, own in _by_pid(saved).items()
        for there in memory_range.merged(there for file in own for there in file.ranges)
    ]
    if huge_pages:
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

    Returns the digests of its files, by their paths beneath that directory.
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


def described(images_fd: int, dump: Dump) -> tuple[Memory, ...]:
    """The large private mappings of all tasks, and how much of each `add_to_dump` has added."""
    found = []
    for task in dump.tasks:
        if f"mm-{task.pid}.img" not in dump.names:
            continue
        mm = criu_image.entry(images.load(images_fd, f"mm-{task.pid}.img"), criu.mm_entry)
        large = [vma for vma in mm.vmas if vma.end - vma.start >= _LARGE_BYTES and _is_own(vma)]
        if not large:
            continue
        pagemap = images.load(images_fd, _pagemap_name(task.pid))
        moved = memory_range.merged(map(_range, criu_image.parent_pages(pagemap)))
        for vma in large:
            parts = (min(vma.end, one.end) - max(vma.start, one.start) for one in moved)
            moved_bytes = sum(size_bytes for size_bytes in parts if size_bytes > 0)
            found.append(Memory(task.pid, vma.start, vma.end - vma.start, moved_bytes))
    return tuple(found)


def in_dump(images_fd: int, dump: Dump) -> dict[str, MemoryFile]:
    """The memory of a dump's tasks that grit can fill in, by its files; pids are the dump's.

    The dump has parent images. Empty if it is not as `add_to_dump` leaves one: CRIU restores it.
    """
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
    if not _holds(mm, memory_range.merged(map(_range, staged))):
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


def _is_own(vma: criu.vma_entry) -> bool:
    """Whether a mapping is private, of no file, and writable."""
    return bool(vma.status & _VMA_ANON_PRIVATE and vma.prot & _PROT_WRITE)


def _holds(mm: criu.mm_entry, ranges: Sequence[MemoryRange]) -> bool:
    """Whether a task has all of *ranges* in writable, private anonymous mappings."""
    whole = memory_range.merged(MemoryRange(vma.start, vma.end) for vma in mm.vmas if _is_own(vma))
    starts = [one.start for one in whole]
    return all(
        (at := bisect(starts, there.start)) and there.end <= whole[at - 1].end for there in ranges
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
