"""Memory that is taken out of a pod's processes and given back to them."""

from __future__ import annotations

from grit_runtime.dump import moved_memory
from grit_runtime.errors import CommandError, GritError, one_line
from grit_runtime.host import procfs
from grit_runtime.model import checkpoint_steps as steps
from grit_runtime.tasks import memory_copy, ptrace_agent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.host.journal import Journal
    from grit_runtime.model.memory_range import MemoryFile
    from grit_runtime.tasks.ptrace_agent import Perform


def empty(
    held: Journal[steps.Step], saved: list[MemoryFile], perform: Perform, *, huge_pages: bool
) -> None:
    """Take memory that was *saved* from processes that stand.

    With *huge_pages* they get these, if the node has any, for what is written there later.
    """
    started = procfs.all_started_ticks(file.pid for file in saved)
    held.record(steps.Memory(tuple(saved), started))
    moved_memory.empty(saved, perform, huge_pages=huge_pages)


def give_back(held: Journal[steps.Step], saved: list[MemoryFile]) -> None:
    """Give back what `empty` took; the files may go then. CommandError if it is not the same."""
    _fill(saved)
    held.record(steps.MemoryBack())


def give_back_recorded(held: Journal[steps.Step]) -> str | None:
    """Undo what `empty` did, unless that was done already; the reason if it cannot be undone.

    That it was done is recorded, as an undo may be killed too: the next one must not fill in again
    what the processes have changed since, nor look for files that are gone.
    """
    away: list[tuple[MemoryFile, int | None]] = []
    for step in held.steps():
        if isinstance(step, steps.Memory):
            away += zip(step.saved, step.started, strict=True)
        if isinstance(step, steps.MemoryBack):
            away = []
    living = [
        file
        for file, started in away
        if procfs.started_ticks(file.pid) == started and not procfs.is_ending(file.pid)
    ]
    # Whoever was to free it goes on though `empty` was cut short, and would free what is filled in.
    ptrace_agent.finish(file.pid for file in living)
    try:
        _fill(living)
    except (GritError, OSError) as error:
        return one_line(error)
    if away:
        held.record(steps.MemoryBack())
    return None


def _fill(saved: list[MemoryFile]) -> None:
    """Fill memory in from files, which a disk may have damaged since."""
    for file, digest in zip(saved, memory_copy.fill(saved), strict=True):
        if file.digest not in ("", digest):  # the first versions recorded none
            raise CommandError(f"memory of process {file.pid}: its file {file.path} is damaged")
