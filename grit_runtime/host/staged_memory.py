"""The device memory that the driver has staged in suspended processes, carried beside CRIU.

CRIU moves memory with one thread, one process after the other; here all cores do. A dump finds the
staged ranges empty. What was in them lies where CRIU has the pages of an earlier dump that its own
adds to (``parent/``): it restores the whole by itself, for whoever does not know better.
"""

from __future__ import annotations

import mmap
import os
from itertools import zip_longest

from grit_runtime.errors import CommandError
from grit_runtime.host import confine, images, process_memory, ptrace
from grit_runtime.host.digest import FileDigest
from grit_runtime.host.process_memory import Saved
from grit_runtime.host.ptrace import Syscall
from grit_runtime.model import memory_range
from grit_runtime.model.memory_range import MemoryRange
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image
from grit_runtime.wire.criu_image import Pages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from grit_runtime.host.still import Perform
    from grit_runtime.model.privilege import Dump
    from grit_runtime.wire.criu_image import Image

_MIN_BYTES = 16 << 20  # what CRIU moves before we have stopped a process
_SYS_MADVISE = 28  # on x86-64
_VMA_ANON_PRIVATE = 1 << 9  # criu/include/image.h
_PROT_WRITE = 2


def appeared(before: Mapping[int, Sequence[MemoryRange]]) -> dict[int, tuple[MemoryRange, ...]]:
    """The memory that processes have got since *before*, of those where it is worth carrying."""
    if not ptrace.IS_SUPPORTED:
        return {}
    found = {
        pid: memory_range.appeared(ranges, process_memory.anonymous(pid), min_bytes=_MIN_BYTES)
        for pid, ranges in before.items()
    }
    return {pid: tuple(ranges) for pid, ranges in found.items() if ranges}


def empty(saved: Sequence[Saved], perform: Perform) -> None:
    """Take from processes that are held still the memory that is saved; its addresses stay theirs.

    What comes there later comes in huge pages, if the node has any.
    """
    for ranges in zip_longest(*(one.ranges for one in saved)):
        places = [(one.pid, there) for one, there in zip(saved, ranges, strict=True) if there]
        perform(_advices(places, mmap.MADV_HUGEPAGE))  # which not every kernel knows
        results = perform(_advices(places, mmap.MADV_DONTNEED))
        for (pid, there), result in zip(places, results, strict=True):
            if result != 0:
                raise CommandError(
                    f"process {pid}: madvise of {there.size_bytes} bytes at {there.start:#x}: "
                    f"{os.strerror(-result)}"
                )


def add_to_dump(images_dir: str, saved: Sequence[Saved]) -> dict[str, FileDigest]:
    """Make saved memory part of the dump in *images_dir*; pids are as the dump has them.

    The files that it is in there, by their paths beneath that directory.
    """
    files = {}
    os.mkdir(f"{images_dir}/{images.PARENT}", 0o700)
    images_fd = confine.open_dir(images_dir)
    try:
        for number, one in enumerate(saved, 1):
            pages = [_pages(there) for there in one.ranges]
            name = f"{images.PARENT}/pages-{number}.img"
            os.link(one.path, f"{images_dir}/{name}")
            files[name] = FileDigest(one.size_bytes, one.digest)
            own = images.load(images_fd, _pagemap_name(one.pid))
            _write(f"{images_dir}/{images.PARENT}", criu_image.pagemap(own.name, number, pages))
            _write(images_dir, criu_image.with_parent_pages(own, pages))
    finally:
        os.close(images_fd)
    return files


def in_dump(images_fd: int, dump: Dump) -> dict[str, Saved]:
    """The memory of a dump's tasks that is ours to bring back, by its files; pids are the dump's.

    None of a dump that is not as `add_to_dump` leaves one: CRIU knows what to do with others.
    """
    if images.PARENT not in dump.names:
        return {}
    found: dict[str, Saved] = {}
    for task in dump.tasks:
        if _pagemap_name(task.pid) not in dump.names:
            continue
        wanted = criu_image.parent_pages(images.load(images_fd, _pagemap_name(task.pid)))
        if not wanted:
            continue
        path = _file_in_parent(images_fd, task.pid, wanted)
        if path is None or path in found:
            return {}
        file_fd = confine.open_regular(images_fd, path)
        ranges = tuple(_range(pages) for pages in wanted)
        found[path] = Saved(task.pid, f"/proc/self/fd/{file_fd}", ranges)
    return found


def _file_in_parent(images_fd: int, pid: int, wanted: list[Pages]) -> str | None:
    """Where a task's pages are that its own images add to; None if they are for CRIU to find."""
    parent_fd = confine.descend(images_fd, (images.PARENT,))
    try:
        there = images.load(parent_fd, _pagemap_name(pid))
    finally:
        os.close(parent_fd)
    mm = criu_image.entry(images.load(images_fd, f"mm-{pid}.img"), criu.mm_entry)
    is_ours = criu_image.present_pages(there) == wanted
    if not (is_ours and all(_holds(mm, _range(pages)) for pages in wanted)):
        return None
    return f"{images.PARENT}/pages-{criu_image.pages(there)[0]}.img"


def left_out(images_fd: int, saved: Iterable[Saved]) -> dict[str, bytes]:
    """The images with which CRIU leaves this memory empty."""
    own = [images.load(images_fd, _pagemap_name(one.pid)) for one in saved]
    return {
        image.name: criu_image.serialize(criu_image.without_parent_pages(image)) for image in own
    }


def _advices(places: Sequence[tuple[int, MemoryRange]], advice: int) -> list[Syscall]:
    return [
        Syscall(pid, _SYS_MADVISE, (there.start, there.size_bytes, advice)) for pid, there in places
    ]


def _holds(mm: criu.mm_entry, wanted: MemoryRange) -> bool:
    """Whether a task has all of the range in one mapping that may simply be written to."""
    return any(
        vma.start <= wanted.start
        and wanted.end <= vma.end
        and vma.status & _VMA_ANON_PRIVATE
        and vma.prot & _PROT_WRITE
        for vma in mm.vmas
    )


def _pages(one: MemoryRange) -> Pages:
    return Pages(one.start, one.size_bytes // mmap.PAGESIZE)


def _range(pages: Pages) -> MemoryRange:
    return MemoryRange(pages.start, pages.start + pages.number * mmap.PAGESIZE)


def _pagemap_name(pid: int) -> str:
    return f"pagemap-{pid}.img"


def _write(directory: str, image: Image) -> None:
    with open(f"{directory}/{image.name}", "wb") as file:
        file.write(criu_image.serialize(image))
