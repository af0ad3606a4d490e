"""The journal of a checkpoint, and giving back what it says was taken of the pod.

Whoever finds the journal without a living writer (the supervisor, a later grit command) undoes it.
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from typing import Any

from grit_runtime import gpu, log
from grit_runtime.errors import FailedPreconditionError, GritError, SourceLostError, one_line
from grit_runtime.host import (
    huge_pages,
    journal,
    link_remaps,
    network,
    process,
    process_memory,
    records,
    runc,
    staged_memory,
)
from grit_runtime.host.process_memory import Saved
from grit_runtime.host.runc import Runc
from grit_runtime.model import lifecycle
from grit_runtime.model.lifecycle import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.host.containerd import Pod
    from grit_runtime.host.journal import Journal
    from grit_runtime.host.still import Perform

JOURNAL = "checkpoint.journal"

# How long an interrupted CRIU may take to let go of its tasks by itself. Killed in the middle it
# would leave its parasite code in them.
_CRIU_LETS_GO_S = 30.0


def begin(pod: Pod) -> Journal:
    """The pod's journal, with the supervisor watching it."""
    path = _journal_path(pod)
    left = journal.adopt(path)
    if left is not None:
        if is_held(left.path):
            left.close()
            raise FailedPreconditionError(
                f"pod {pod.namespace}/{pod.name} is held frozen by a checkpoint; "
                "run grit resume first"
            )
        undo(left)
    held = journal.begin(path)
    null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0)
    os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "grit_runtime.cli.main", "recover", "--wait", path],
        os.environ,
        file_actions=[null, (os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)],
        setsid=True,
    )
    return held


def undo(held: Journal) -> None:
    """Take back what the journal records, newest first; a stop that had begun is completed."""
    steps = held.steps()
    if steps:
        first = steps[0]
        tool = Runc("runc", ("--root", first["runc_root"]), first["token"])
        process.wait_gone(tool.token, deadline_s=_CRIU_LETS_GO_S)
        stopping = any(step["step"] == "stop" for step in steps)
        # Before any of the processes runs again.
        lost = None if stopping else _give_back_memory(steps)
        for step in reversed(steps):
            if not (lost and step["step"] == "gpu"):  # what they would get is not what they had
                _undo_step(tool, step, stopping=stopping)
        if lost:
            end(held)
            raise SourceLostError(f"source lost: {lost}; delete the pod")
    end(held)


def take_memory(
    held: Journal, wanted: list[Saved], perform: Perform, *, to_disk: bool
) -> list[Saved]:
    """Take memory from processes that are held still, into the files that *wanted* says."""
    digests = process_memory.save(wanted, to_disk=to_disk)
    saved = [one._replace(digest=value) for one, value in zip(wanted, digests, strict=True)]
    started = [process.started_ticks(one.pid) for one in saved]
    held.record("memory", saved=saved, started=started)
    staged_memory.empty(saved, perform)
    return saved


def give_back_memory(held: Journal, saved: list[Saved]) -> None:
    """What `take_memory` took, whether or not the processes run; its files are not needed then."""
    process_memory.fill(saved)
    held.record("memory back")


def recover() -> list[str]:
    """Undo every checkpoint whose engine has died; the journals that were undone."""
    huge_pages.recover()
    return [
        path for path in journal.beneath(journal.PODS_DIR, f"*/{JOURNAL}") if _recover_one(path)
    ]


def supervise(path: str) -> None:
    """Wait for the engine that writes the journal at *path*, and undo it if the engine has died."""
    _recover_one(path, wait=True)


def resume(pod: Pod) -> None:
    """Let a pod that a checkpoint left frozen run on; FailedPreconditionError if none did."""
    held = journal.adopt(_journal_path(pod))
    if held is None:
        raise FailedPreconditionError(
            f"pod {pod.namespace}/{pod.name} is not held frozen by a checkpoint"
        )
    undo(held)


def is_held(path: str) -> bool:
    """Whether the journal at *path* is of a checkpoint that has left its pod frozen."""
    try:
        return any(step["step"] == "frozen" for step in journal.read(path))
    except FileNotFoundError:  # it has just ended
        return False


def forget_pod(pod_dir: str) -> None:
    """The sandbox is being deleted, and what a checkpoint had frozen in it goes too."""
    held = journal.adopt(f"{pod_dir}/{JOURNAL}")
    if held is not None:
        end(held)


def end(held: Journal) -> None:
    held.end()
    with suppress(OSError):  # the pod may have other state
        os.rmdir(os.path.dirname(held.path))


def _undo_step(tool: Runc, step: dict[str, Any], *, stopping: bool) -> None:
    match step["step"]:
        case "freeze" if stopping:
            runc.stop(tool, step["container"])
        case "freeze":
            runc.resume(tool, step["container"])
        case "thaw" if not stopping:
            runc.pause(tool, step["container"])
        case "gpu" if not stopping:
            gpu.revive_pids(tool.token, step["pids"])
        case "silence" if not stopping:
            network.let_speak(step["path"])
        case link_remaps.STEP:
            link_remaps.drop([step])
        case "directory":
            shutil.rmtree(step["path"], ignore_errors=True)
        case _:
            pass  # nothing to take back


def _give_back_memory(steps: list[dict[str, Any]]) -> str | None:
    """Undo what `take_memory` did, as far as it was not yet; why it cannot be, if so."""
    taken: list[tuple[Saved, int]] = []
    for step in steps:
        if step["step"] == "memory":
            saved = [Saved.from_json(*fields) for fields in step["saved"]]
            taken = list(zip(saved, step["started"], strict=True))
        if step["step"] == "memory back":
            taken = []
    living = [one for one, started in taken if process.started_ticks(one.pid) == started]
    try:
        process_memory.fill(living)
    except (GritError, OSError) as error:
        return one_line(error)
    return None


def _recover_one(path: str, *, wait: bool = False) -> bool:
    held = journal.adopt(path, wait=wait)
    if held is None:
        return False
    if is_held(held.path):
        held.close()
        return False
    began = [step["outcome"] for step in held.steps()[:1] if "outcome" in step]
    outcomes = [Outcome(**fields)._replace(time=log.rfc3339()) for fields in began]
    try:
        undo(held)
    except SourceLostError as error:
        outcomes = [one._replace(outcome=lifecycle.LOST, reason=str(error)) for one in outcomes]
        raise
    finally:
        for one in outcomes:
            records.append(one)
    return True


def _journal_path(pod: Pod) -> str:
    return f"{journal.PODS_DIR}/{pod.sandbox_id}/{JOURNAL}"
