"""Memory that is taken out of a pod's processes and given back to them."""

from __future__ import annotations

from grit_runtime.dump import staged_memory
from grit_runtime.errors import (
    GritError,
    one_line,
)
from grit_runtime.host import procfs
from grit_runtime.model import checkpoint_steps as steps
from grit_runtime.tasks import memory_copy, ptrace_agent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from grit_runtime.host.journal import Journal
    from grit_runtime.model.memory_range import MemoryFile
    from grit_runtime.tasks.memory_copy import Place
    from grit_runtime.tasks.ptrace_agent import Perform


def take(
    held: Journal[steps.Step],
    files: list[MemoryFile],
    perform: Perform,
    *,
    to_disk: bool,
    copied: Mapping[Place, bytes],
) -> list[MemoryFile]:
    """Move memory of stopped processes into *files*; the same with their digests.

    What was *copied* there before is not written again where it is right.
    """
    digests = memory_copy.save(files, to_disk=to_disk, copied=copied)
    saved = [file._replace(digest=digest) for file, digest in zip(files, digests, strict=True)]
    started = tuple(procfs.started_ticks(file.pid) for file in saved)
    held.record(steps.Memory(tuple(saved), started))
    staged_memory.empty(saved, perform)
    return saved


def give_back(held: Journal[steps.Step], saved: list[MemoryFile]) -> None:
    """Give back what `take` took, whether or not the processes run; the files may go then."""
    memory_copy.fill(saved)
    held.record(steps.MemoryBack())


def give_back_recorded(taken: list[steps.Step]) -> str | None:
    """Undo what `take` did, unless that was done already; the reason if it cannot be undone."""
    away = steps.Memory((), ())
    for step in taken:
        if isinstance(step, steps.Memory):
            away = step
        if isinstance(step, steps.MemoryBack):
            away = steps.Memory((), ())
    living = [
        file
        for file, started in zip(away.saved, away.started, strict=True)
        if procfs.started_ticks(file.pid) == started
    ]
    # Whoever was to free it goes on though `take` was cut short, and would free what is filled in.
    ptrace_agent.finish(file.pid for file in living)
    try:
        memory_copy.fill(living)
    except (GritError, OSError) as error:
        return one_line(error)
    return None
