"""Moving large heaps of a frozen pod into files with all cores, so that CRIU finds them empty.

Only where the source is to end. Until the checkpoint is sealed the files are all that there is of
the heaps: an undo fills them in again, also after a kill, but a node that loses its power has
neither. A source that is to go on keeps its memory, and CRIU dumps that.
"""

from __future__ import annotations

from contextlib import contextmanager

from grit_runtime.checkpoint import freezing, memory
from grit_runtime.dump import moved_memory
from grit_runtime.errors import NotDumpableError
from grit_runtime.host import procfs
from grit_runtime.model import checkpoint_steps as steps
from grit_runtime.tasks import memory_copy, process_memory, ptrace, ptrace_agent

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
# What lies between pages that are shared, swapped out or not there is left to CRIU if it is less.
_MIN_RANGE_BYTES = 1 << 20


def move_out(context: Context, suspended: Suspended) -> Suspended:
    """Move the large heaps of a pod that stands still into files, if it is to end."""
    frozen = [c for c in context.containers if c.id in suspended.frozen.ids]
    if context.order.after != "stopped" or not ptrace.IS_SUPPORTED:
        return suspended
    pids = sorted({pid for container in frozen for pid in container.pids()})
    found = {pid: own for pid in pids if (own := _heap(pid))}
    if not found:
        return suspended
    files = moved_memory.files(found, f"{context.memory_dir}/heap")
    with context.timeline.phase("heap", size_bytes=sum(file.size_bytes for file in files)):
        memory_copy.save(files, to_disk=True)
        with _standing(context, frozen, pids) as holder:
            memory.empty(context.journal, files, holder.perform, huge_pages=False)
    return suspended._replace(saved=suspended.saved + files)


def _heap(pid: int) -> list[MemoryRange]:
    """The pages of a process that are moved; none if they are too few."""
    if procfs.anonymous_bytes(pid) < _MIN_HEAP_BYTES:
        return []
    ranges = [
        own
        for there in process_memory.heaps(pid, _MIN_RANGE_BYTES)
        for own in process_memory.own_pages(pid, there)
        if own.size_bytes >= _MIN_RANGE_BYTES
    ]
    return ranges if sum(own.size_bytes for own in ranges) >= _MIN_HEAP_BYTES else []


@contextmanager
def _standing(
    context: Context, frozen: Sequence[RunningContainer], pids: Sequence[int]
) -> Iterator[Holder]:
    """Thaw the containers, for what needs that, while a tracer holds all of their processes."""
    context.journal.record(steps.Kept(tuple(pids)))
    holder = ptrace_agent.keep(pids, (), are_frozen=True)
    try:
        freezing.thaw(context.tool, [container.id for container in frozen])
        holder.stand()
        yield holder
        if reasons := freezing.freeze_once(context.tool, frozen):
            raise NotDumpableError("; ".join(reasons))
        holder.release()
    finally:
        holder.close()
