"""Moving large heaps of a frozen pod into files with all cores, so that CRIU finds them empty.

Only where the source is to end. Until the checkpoint is sealed the files are all that there is of
the heaps: an undo fills them in again, also after a kill, but a node that loses its power has
neither. They are read while all is frozen and held by a tracer, and emptied while that alone holds
them. A source that is to go on keeps its memory, and CRIU dumps that.
"""

from __future__ import annotations

from contextlib import contextmanager

from grit_runtime.checkpoint import freezing, memory
from grit_runtime.dump import moved_memory
from grit_runtime.errors import NotDumpableError
from grit_runtime.host import procfs
from grit_runtime.model import checkpoint_steps as steps
from grit_runtime.tasks import descriptors, memory_copy, process_memory, ptrace, ptrace_agent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from grit_runtime.checkpoint.order import Context
    from grit_runtime.checkpoint.standstill import Suspended
    from grit_runtime.model.memory_range import MemoryRange
    from grit_runtime.pod.running_container import RunningContainer
    from grit_runtime.tasks.ptrace_agent import Holder

# Measured: holding, thawing and freezing again take 0.3 s. Two cores are as quick as CRIU's thread
# up to 1 GiB, and quicker above; 16 are quicker from 256 MiB on.
_MIN_HEAP_BYTES = 512 << 20
# What lies between pages that are shared, swapped out or not there is left to CRIU if it is less,
# and of a heap that is in very many pieces the smallest are: a call is made for each.
_MIN_RANGE_BYTES = 1 << 20
_MOST_RANGES = 4096


def move_out(context: Context, suspended: Suspended) -> Suspended:
    """Move the large heaps of a pod that stands still into files, if it is to end."""
    frozen = [c for c in context.containers if c.id in suspended.frozen.ids]
    if context.order.after != "stopped" or not ptrace.IS_SUPPORTED:
        return suspended
    pids = _pids(frozen)
    if not any(procfs.anonymous_bytes(pid) >= _MIN_HEAP_BYTES for pid in pids):
        return suspended
    with context.timeline.phase("heap") as entry, _held(context, frozen, pids) as holder:
        found = {pid: own for pid in pids if (own := _heap(pid))}
        files = moved_memory.files(found, f"{context.memory_dir}/heap")
        entry["size_bytes"] = sum(file.size_bytes for file in files)
        saved = memory_copy.save(files, to_disk=True)
        with _thawed(context, frozen, pids, holder):
            memory.empty(context.journal, saved, holder.perform, huge_pages=False)
    return suspended._replace(saved=suspended.saved + saved)


def _pids(containers: Sequence[RunningContainer]) -> list[int]:
    return sorted({pid for container in containers for pid in container.pids()})


def _heap(pid: int) -> list[MemoryRange]:
    """The pages of a process that are moved; none if they are too few."""
    if procfs.anonymous_bytes(pid) < _MIN_HEAP_BYTES or descriptors.has_device(pid):
        return []
    ranges = [
        own
        for there in process_memory.heaps(pid, _MIN_RANGE_BYTES)
        for own in process_memory.own_pages(pid, there)
        if own.size_bytes >= _MIN_RANGE_BYTES
    ]
    largest = sorted(ranges, key=lambda own: own.size_bytes)[-_MOST_RANGES:]
    return largest if sum(own.size_bytes for own in largest) >= _MIN_HEAP_BYTES else []


@contextmanager
def _held(
    context: Context, frozen: Sequence[RunningContainer], pids: Sequence[int]
) -> Iterator[Holder]:
    """Hold all threads of the frozen containers by a tracer too, out of the kernel.

    A thread that is only frozen may be in a system call, and write to memory when it is thawed. If
    the block fails, they are held until that is undone.
    """
    context.journal.record(steps.Kept(tuple(pids), procfs.all_started_ticks(pids)))
    holder = ptrace_agent.keep(pids, (), are_frozen=True)
    try:
        with _thawed(context, frozen, pids, holder):
            pass  # they have left the kernel
        yield holder
        holder.release()
    finally:
        holder.close()


@contextmanager
def _thawed(
    context: Context, frozen: Sequence[RunningContainer], pids: Sequence[int], holder: Holder
) -> Iterator[None]:
    """Thaw containers, all of whose processes *holder* holds, and freeze them again."""
    freezing.thaw(context.tool, [container.id for container in frozen])
    holder.stand()
    yield
    if reasons := freezing.freeze_once(context.tool, frozen):
        raise NotDumpableError("; ".join(reasons))
    if new := sorted(set(_pids(frozen)) - set(pids)):
        raise NotDumpableError(
            f"process {new[0]} was started in the pod (exec) while it was held; try again"
        )
