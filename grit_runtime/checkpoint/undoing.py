"""Giving back to a pod what the journal of its checkpoint says was taken.

Whoever finds the journal without a living writer (the supervisor, a later grit command) undoes it.
From a step of `COMMITTED` on there is no way back: the checkpoint is sealed, and what was ordered
for the pod is completed.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress

from grit_runtime import log
from grit_runtime.checkpoint import early_push, memory, older_holds
from grit_runtime.dump import link_remaps
from grit_runtime.errors import (
    INTERRUPTED,
    FailedPreconditionError,
    GritError,
    HeldError,
    ManifestError,
    NotFoundError,
    PodStateError,
    SourceLostError,
)
from grit_runtime.files import checkpoint_dir
from grit_runtime.host import huge_pages, journal, linux, process, procfs, records, runc
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import checkpoint_steps as steps
from grit_runtime.model import outcomes
from grit_runtime.model.steps import has, last
from grit_runtime.nvidia import suspension
from grit_runtime.pod import held_pods, network
from grit_runtime.startup.named import NamedTuple
from grit_runtime.tasks import ptrace_agent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from grit_runtime.checkpoint.order import After
    from grit_runtime.host.journal import Journal
    from grit_runtime.host.runc import Runc
    from grit_runtime.model.outcomes import Outcome

# How long an interrupted CRIU may take to detach from its tasks. If it were killed before, it
# would leave its parasite code in them.
_CRIU_LETS_GO_S = 30.0

# How long others may look at the journal of a held pod, or give it back its memory.
_LOOKED_AT_S = 10.0
_LOOK_EVERY_S = 0.02

# By what is to become of the source, the step with which its checkpoint is final.
COMMITTED: dict[After, steps.Sealed | steps.Frozen | steps.Stop] = {
    "running": steps.Sealed(),
    "frozen": steps.Frozen(),
    "stopped": steps.Stop(),
}


class Recovered(NamedTuple):
    """The journals that were undone, and why others could not be."""

    undone: list[str]
    failed: list[GritError | OSError]


def begin(path: str, name: str) -> Journal[steps.Step]:
    """A new journal at *path* of what is called *name*, with the supervisor watching it.

    A dead one is undone first. HeldError if that has left the pod frozen, PodStateError if another
    grit works on it.
    """
    left = adopt(path)
    if left is not None:
        if is_pod_held(left.path):
            left.close()
            raise HeldError(f"{name} is held frozen by a checkpoint; run grit resume first")
        undo(left)
    try:
        held = journal.begin(path, steps.STEPS)
    except FailedPreconditionError:
        raise PodStateError(
            f"{name}: another grit is checkpointing it, or undoing that; wait until it has ended"
        ) from None
    options = ["--log-json"] if log.is_json() else []
    process.spawn_apart(process.grit("recover", "--wait", path, *options), os.environ)
    return held


def adopt(path: str) -> Journal[steps.Step] | None:
    """The journal at *path* if its writer is dead; that of a held pod, once nobody looks at it.

    The supervisor, and whoever kills a container, lock it for as long as they look.
    """
    end_s = time.monotonic() + _LOOKED_AT_S
    while True:
        held = journal.adopt(path, steps.STEPS)
        if held is not None or not is_pod_held(path) or time.monotonic() > end_s:
            return held
        time.sleep(_LOOK_EVERY_S)


def undo(held: Journal[steps.Step], *, resuming: bool = False) -> None:
    """Take back what the journal records, newest first; what is committed is completed.

    A pod that is held stays so, unless it is *resuming*. If a step fails the others are taken back
    all the same, and the first error is raised; the journal stays then for the next undo, unless
    all that failed is lost.
    """
    taken = held.steps()
    failures: list[GritError | OSError] = []
    stays_held = has(taken, steps.Frozen) and not resuming
    try:
        if stays_held:
            _hold_on(held)
        elif begun := last(taken, steps.Begin):
            failures = _taken_back(held, taken, begun)
    except BaseException:
        held.close()
        raise
    if stays_held or not all(isinstance(error, SourceLostError) for error in failures):
        held.close()
    else:
        end(held)
    if failures:
        raise failures[0]


def _taken_back(
    held: Journal[steps.Step], taken: list[steps.Step], begun: steps.Begin
) -> list[GritError | OSError]:
    """Take back the steps that were *taken*; what has failed."""
    tool = runc.installed(begun.runc_root, begun.token)
    criu_dir = begun.criu_dir or f"{os.path.dirname(held.path)}/{journal.DUMP}"
    process.wait_gone(tool.token, deadline_s=_CRIU_LETS_GO_S, criu_dir=criu_dir)
    stopping = has(taken, steps.Stop)
    # Before any of the processes runs again.
    lost = None if stopping else memory.give_back_recorded(held)
    stopping |= bool(lost) and has(taken, steps.Kept)  # or they would run on with empty heaps
    stay = _staying(taken, stopping=stopping, lost=bool(lost))
    undone = [step for step in taken if not isinstance(step, stay)]
    failures = _undo_steps(tool, undone, stopping=stopping)
    if lost:
        failures.insert(0, SourceLostError(f"source lost: {lost}; delete the pod"))
    return failures


def _hold_on(held: Journal[steps.Step]) -> None:
    """Leave a pod frozen whose checkpoint is sealed: with its memory, and nothing besides it."""
    begun = last(held.steps(), steps.Begin)
    if lost := memory.give_back_recorded(held):
        log.error("the held pod cannot go on here", reason=lost)
    elif not (begun and process.carrying(early_push.token(begun.token))):  # which reads it still
        _drop_directories(held)


def recover() -> Recovered:
    """Undo every checkpoint whose engine has died. What fails is logged, and the others go on."""
    huge_pages.recover()
    older_holds.keep()
    held_pods.drop_gone()
    return _recover_each(_recover_one)


def recover_gone() -> None:
    """End the journals of pods that were deleted while they were held."""
    _recover_each(lambda path: is_pod_held(path) and _recover_one(path))


def supervise(path: str) -> None:
    """Wait for the engine that writes the journal at *path*, and undo it if the engine has died."""
    if _recover_one(path, wait=True):
        huge_pages.recover()


def is_pod_held(path: str) -> bool:
    """Whether the journal at *path* is of a checkpoint that has left its pod frozen."""
    try:
        return has(journal.read(path, steps.STEPS), steps.Frozen)
    except FileNotFoundError:  # it has just ended
        return False


def forget_pod(pod_dir: str) -> None:
    """The sandbox is being deleted, with the containers that a checkpoint had frozen in it.

    The pod stays held, because it may get another sandbox.
    """
    held = adopt(f"{pod_dir}/{journal.CHECKPOINT}")
    if held is not None:
        _forget(held)


def end(held: Journal[steps.Step]) -> None:
    held.end()
    with suppress(OSError):  # the pod may have other state
        os.rmdir(os.path.dirname(held.path))


def _forget(held: Journal[steps.Step]) -> None:
    """Drop the journal of a pod that is gone: there is nothing to give back."""
    _drop_directories(held)
    end(held)


def _drop_directories(held: Journal[steps.Step]) -> None:
    for step in held.steps():
        if isinstance(step, steps.Directory):
            shutil.rmtree(step.path, ignore_errors=True)


def _staying(
    taken: list[steps.Step], *, stopping: bool, lost: bool
) -> tuple[type[steps.Step], ...]:
    """The steps that are not taken back."""
    if has(taken, steps.Sealed):  # it runs, and may be as others have made it since
        return tuple({type(step) for step in taken} - {steps.Directory})
    stay: set[type[steps.Step]] = set()
    if stopping:
        stay |= {steps.Thaw, steps.Gpu, steps.Silence, steps.Kept}
    if has(taken, steps.Frozen):  # the pod is being resumed
        stay.add(steps.Hold)
    if lost:
        stay.add(steps.Gpu)  # the processes would get other GPU memory than they had
    if lost or _is_final(taken):
        stay.add(steps.Sealing)
    return tuple(stay)


def _undo_steps(
    tool: Runc, taken: list[steps.Step], *, stopping: bool
) -> list[GritError | OSError]:
    """Undo steps, newest first; CUDA processes do not run before their GPUs are back.

    What has failed: where a container could not be thawed, what needs that is left for the next
    undo.
    """
    failures: list[GritError | OSError] = []
    is_stuck = False
    if not stopping and (before := last(taken, steps.Standing)):
        suspension.stand_again(tool.token, _same(before))
    if kept := last(taken, steps.Kept):
        ptrace_agent.let_go(_same(kept))
    pids = {pid for step in taken if isinstance(step, steps.Gpu) for pid in _same(step)}
    with suspension.standing(tool.token, sorted(pids)):
        for step in reversed(taken):
            if is_stuck and isinstance(step, steps.Gpu | steps.Thaw):
                continue
            try:
                _undo_step(tool, step, stopping=stopping)
            except (GritError, OSError) as error:
                failures.append(error)
                is_stuck |= isinstance(step, steps.Freeze)
    return failures


def _undo_step(tool: Runc, step: steps.Step, *, stopping: bool) -> None:
    match step:
        case steps.Freeze(container):
            (runc.stop if stopping else runc.resume)(tool, container)
        case steps.Thaw(container):
            runc.pause(tool, container)
        case steps.Gpu() if pids := _same(step):
            suspension.bring_back_pids(tool.token, pids)
        case steps.Silence(path):
            network.unblock_egress(path)
        case steps.Link():
            link_remaps.drop([step])
        case steps.Hold(pod_uid):
            held_pods.drop(pod_uid)
        case steps.Directory(path):
            shutil.rmtree(path, ignore_errors=True)
        case steps.Sealing():
            _take_name_back(step)
        case (
            steps.Gpu()
            | steps.Memory()
            | steps.MemoryBack()
            | steps.Begin()
            | steps.Sealed()
            | steps.Frozen()
            | steps.Stop()
            | steps.Standing()
            | steps.Kept()
        ):
            pass  # nothing to take back, or that was done before anything else


def _same(step: steps.Gpu | steps.Standing | steps.Kept) -> Sequence[int]:
    """The processes that the step was about: their numbers may be others' by now."""
    if not step.started:  # an older version's
        return step.pids
    pairs = zip(step.pids, step.started, strict=True)
    return [pid for pid, started in pairs if started and procfs.started_ticks(pid) == started]


def _take_name_back(step: steps.Sealing) -> None:
    """Make a checkpoint that has its name, but is not final, what it was before."""
    directory, name = os.path.split(step.path)
    try:
        with closing_fd(checkpoint_dir.open_named(directory, (name,))) as dir_fd:
            found = checkpoint_dir.read_manifest(dir_fd, step.path).sha256
    except (NotFoundError, ManifestError):
        return
    if found != step.manifest_sha256:
        return
    if os.path.lexists(step.staging_dir):
        linux.exchange(step.staging_dir, step.path)
    else:
        os.rename(step.path, step.staging_dir)


def _recover_each(recover_one: Callable[[str], bool]) -> Recovered:
    recovered = Recovered([], [])
    for path in journal.checkpoints():
        try:
            if recover_one(path):
                recovered.undone.append(path)
        except (GritError, OSError) as error:
            log.error("a checkpoint could not be undone", journal=path, reason=error)
            recovered.failed.append(error)
    return recovered


def _recover_one(path: str, *, wait: bool = False) -> bool:
    held = journal.adopt(path, steps.STEPS, wait=wait)
    if held is None:
        return False
    if is_pod_held(held.path):
        return _recover_held(held)
    begun = last(held.steps(), steps.Begin)
    outcome = _outcome(held.steps())
    whose = outcomes.whose(outcome) if outcome else {}
    try:
        with log.about(**whose | {"attempt": begun.token if begun else ""}):
            undo(held)
    except SourceLostError as error:
        if outcome:
            outcome = outcome._replace(outcome=outcomes.LOST, reason=str(error), error=error.reason)
        raise
    finally:
        if outcome:
            records.append(outcome)
    return True


def _recover_held(held: Journal[steps.Step]) -> bool:
    """Complete the hold of a pod whose engine has died; whether the pod, and this, is gone."""
    try:
        if not _is_sandbox_gone(held):
            _hold_on(held)
            outcome = _outcome(held.steps())
            if outcome and outcome.outcome == outcomes.SEALED and not _is_recorded(outcome):
                records.append(outcome)
        is_gone = _is_sandbox_gone(held)  # it may have been deleted meanwhile
    except BaseException:
        held.close()
        raise
    if is_gone:
        _forget(held)
        held_pods.drop_gone()
    else:
        held.close()
    return is_gone


def _is_recorded(outcome: Outcome) -> bool:
    past = records.readable(outcome.pod_uid)
    return any(one.manifest_sha256 == outcome.manifest_sha256 for one in past)


def _outcome(taken: list[steps.Step]) -> Outcome | None:
    """What became of a checkpoint whose engine was killed, for the pod's record."""
    begun, sealing = last(taken, steps.Begin), last(taken, steps.Sealing)
    if begun is None or begun.outcome is None:
        return None
    outcome = begun.outcome._replace(time=log.rfc3339(), error=INTERRUPTED)
    if sealing and _is_final(taken):
        return outcome._replace(
            outcome=outcomes.SEALED, reason="", error="", manifest_sha256=sealing.manifest_sha256
        )
    return outcome


def _is_final(taken: list[steps.Step]) -> bool:
    return any(step in COMMITTED.values() for step in taken)


def _is_sandbox_gone(held: Journal[steps.Step]) -> bool:
    """Whether runc no longer knows the pod.

    grit is not called when a pod of another runtime handler is deleted.
    """
    sandbox_id = os.path.basename(os.path.dirname(held.path))
    begun = last(held.steps(), steps.Begin)
    return begun is not None and not os.path.exists(f"{begun.runc_root}/{sandbox_id}")
