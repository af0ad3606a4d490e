"""What a CUDA process leaves to the children that it forks, and they cannot use.

A fork copies descriptors and mappings of the driver's devices, but the driver ties all of it to the
address space that it was made for: a child's calls are answered CUDA_ERROR_NOT_INITIALIZED. CRIU
cannot dump it, so a descriptor of /dev/null takes each descriptor's place, and empty memory each
mapping's, which are the driver's own queues and registers. (Pinned memory of a program is ordinary
shared memory. Measured: driver 580, PyTorch's DataLoader.)
"""

from __future__ import annotations

import errno
import mmap
import os
from contextlib import suppress

from grit_runtime.errors import DriverError
from grit_runtime.host import linux, procfs
from grit_runtime.model import nvidia_nodes
from grit_runtime.model.memory_range import MemoryRange
from grit_runtime.startup.named import NamedTuple
from grit_runtime.tasks import ptrace, ptrace_agent
from grit_runtime.tasks.ptrace import Syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from grit_runtime.tasks.ptrace_agent import Perform

# On x86-64.
_SYS_CLOSE, _SYS_MMAP, _SYS_MUNMAP, _SYS_OPENAT, _SYS_DUP3 = 3, 9, 11, 257, 292
_AT_FDCWD = -100 % 2**64
_NOWHERE = -1 % 2**64
_MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE = 0x2, 0x10, 0x20, 0x4000
_PROTECTIONS = {"r": mmap.PROT_READ, "w": mmap.PROT_WRITE, "x": mmap.PROT_EXEC}
_NULL = b"/dev/null\0"


class Mapping(NamedTuple):
    """A mapping of a device's memory, and its protection as mmap(2) has it."""

    place: MemoryRange
    protection: int


class Heir(NamedTuple):
    """A child, its descriptors of the driver's devices, and its mappings."""

    pid: int
    descriptors: tuple[int, ...]
    mappings: tuple[Mapping, ...]


def find(pids: Iterable[int], cuda_pids: Sequence[int]) -> tuple[list[Heir], list[int]]:
    """Those of *pids* that have inherited all that they hold; and those that hold something else.

    Only while the CUDA processes still hold it.
    """
    originals = {pid: _nodes(pid) for pid in cuda_pids}
    heirs, others = [], []
    for pid in sorted(set(pids) - set(cuda_pids)):
        nodes, mappings = _nodes(pid), tuple(_mappings(pid))
        if not nodes and not mappings:
            continue
        are_inherited = ptrace.IS_SUPPORTED and all(
            any(_is_of(parent, pid, fd, link, theirs) for parent, theirs in originals.items())
            for fd, link in nodes.items()
        )
        if nodes and are_inherited:
            heirs.append(Heir(pid, tuple(nodes), mappings))
        else:
            others.append(pid)
    return heirs, others


def let_go(pids: Callable[[], Iterable[int]], cuda_pids: Sequence[int], token: str) -> None:
    """Have the heirs among *pids* hold nothing of the driver any more. Blocks for milliseconds.

    Only while the CUDA processes still hold it: until its heirs stand, they may fork, or close what
    they have inherited and open something else in its place.
    """
    while heirs := find(pids(), cuda_pids)[0]:
        standing = [heir.pid for heir in heirs]
        with ptrace_agent.held(standing, token) as holder:
            for heir in find(standing, cuda_pids)[0]:
                with suppress(ProcessLookupError):  # it has been killed
                    _let_go(heir, holder.perform)


def _let_go(heir: Heir, perform: Perform) -> None:
    def call(number: int, *arguments: int) -> int:
        (result,) = perform([Syscall(heir.pid, number, arguments)])
        if result == -errno.ESRCH:
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), f"process {heir.pid}")
        if result < 0:
            raise DriverError(
                f"process {heir.pid} cannot let go of what it inherited of the GPU driver: "
                f"system call {number}: {os.strerror(-result)}"
            )
        return result

    readable = mmap.PROT_READ | mmap.PROT_WRITE
    page = call(_SYS_MMAP, 0, mmap.PAGESIZE, readable, _MAP_PRIVATE | _MAP_ANONYMOUS, _NOWHERE, 0)
    ptrace.write_memory(heir.pid, page, _NULL)
    null_fd = call(_SYS_OPENAT, _AT_FDCWD, page, os.O_RDWR | os.O_CLOEXEC)
    for fd in heir.descriptors:
        call(_SYS_DUP3, null_fd, fd, _flags(heir.pid, fd) & os.O_CLOEXEC)
    call(_SYS_CLOSE, null_fd)
    call(_SYS_MUNMAP, page, mmap.PAGESIZE)
    empty = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_FIXED | _MAP_NORESERVE
    for place, protection in heir.mappings:
        call(_SYS_MMAP, place.start, place.size_bytes, protection, empty, _NOWHERE, 0)


def _nodes(pid: int) -> dict[int, str]:
    """The descriptors of a process that are of the driver's devices."""
    return {fd: link for fd, link in procfs.open_links(pid).items() if nvidia_nodes.is_node(link)}


def _is_of(parent: int, pid: int, fd: int, link: str, theirs: dict[int, str]) -> bool:
    """Whether a descriptor is one of a parent's: the same opening of the file."""
    try:
        return any(
            not linux.differ(parent, pid, linux.KCMP_FILE, (other, fd))
            for other, its_link in theirs.items()
            if its_link == link
        )
    except (ProcessLookupError, OSError):
        return False


def _mappings(pid: int) -> list[Mapping]:
    found = []
    for line in procfs.text(pid, "maps").splitlines():
        place, flags, _, _, _, *path = line.split(None, 5)
        if path and nvidia_nodes.is_node(path[0]):
            protection = sum(_PROTECTIONS.get(flag, 0) for flag in flags)
            start, end = (int(number, 16) for number in place.split("-"))
            found.append(Mapping(MemoryRange(start, end), protection))
    return found


def _flags(pid: int, fd: int) -> int:
    fields = procfs.text(pid, f"fdinfo/{fd}").split()
    if not fields:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH), f"process {pid}")
    return int(fields[fields.index("flags:") + 1], 8)
