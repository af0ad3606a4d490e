"""The journal of a checkpoint, and giving back to the pod what it says was taken.

Whoever finds the journal without a living writer (the supervisor, a later grit command) undoes it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from contextlib import suppress

from grit_runtime import log
from grit_runtime.checkpoint import memory
from grit_runtime.dump import link_remaps
from grit_runtime.errors import (
    INTERRUPTED,
    FailedPreconditionError,
    GritError,
    HeldError,
    InvalidArgumentError,
    PodStateError,
    SecondLifeError,
    SourceLostError,
    UnavailableError,
    one_line,
)
from grit_runtime.files import checkpoint_dir
from grit_runtime.host import huge_pages, journal, process, records, runc
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import checkpoint_steps as steps
from grit_runtime.model import hold as model
from grit_runtime.model import manifest as manifests
from grit_runtime.model import outcomes
from grit_runtime.model.hold import Hold
from grit_runtime.model.steps import has, last
from grit_runtime.nvidia import suspension
from grit_runtime.pod import held_pods, lives, network
from grit_runtime.tasks import ptrace_agent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.host.containerd import Pod
    from grit_runtime.host.journal import Journal
    from grit_runtime.host.runc import Runc


# How long an interrupted CRIU may take to detach from its tasks. If it were killed before, it
# would leave its parasite code in them.
_CRIU_LETS_GO_S = 30.0


def begin(pod: Pod) -> Journal[steps.Step]:
    """The pod's journal, with the supervisor watching it."""
    _refuse_awaited(pod)
    path = _journal_path(pod)
    left = _adopt(path)
    if left is not None:
        if is_pod_held(left.path):
            left.close()
            raise HeldError(
                f"pod {pod.namespace}/{pod.name} is held frozen by a checkpoint; "
                "run grit resume first"
            )
        undo(left)
    try:
        held = journal.begin(path, steps.STEPS)
    except FailedPreconditionError:
        raise PodStateError(
            f"pod {pod.namespace}/{pod.name}: another grit is checkpointing it, or undoing that; "
            "wait until it has ended"
        ) from None
    recovery = [sys.executable, "-m", "grit_runtime.cli.main", "recover", "--wait", path]
    recovery += ["--log-json"] if log.is_json() else []
    process.spawn_apart(recovery, os.environ)
    return held


def undo(held: Journal[steps.Step]) -> None:
    """Take back what the journal records, newest first; a stop that had begun is completed."""
    taken = held.steps()
    begin = last(taken, steps.Begin)
    if begin:
        tool = runc.installed(begin.runc_root, begin.token)
        criu_dir = f"{os.path.dirname(held.path)}/{journal.DUMP}"
        process.wait_gone(tool.token, deadline_s=_CRIU_LETS_GO_S, criu_dir=criu_dir)
        stopping = has(taken, steps.Stop)
        # Before any of the processes runs again.
        lost = None if stopping else memory.give_back_recorded(held)
        stopping |= bool(lost) and has(taken, steps.Kept)  # or they would run on with empty heaps
        stay: tuple[type[steps.Step], ...] = ()
        if stopping:
            stay = (steps.Thaw, steps.Gpu, steps.Silence, steps.Kept)
        elif has(taken, steps.Frozen):  # the pod is being resumed
            stay = (steps.Hold,)
        if lost:
            stay += (steps.Gpu,)  # the processes would get other GPU memory than they had
        _undo_steps(tool, [step for step in taken if not isinstance(step, stay)], stopping=stopping)
        if lost:
            end(held)
            raise SourceLostError(f"source lost: {lost}; delete the pod")
    end(held)


def recover() -> list[str]:
    """Undo every checkpoint whose engine has died; paths of the journals that were undone."""
    huge_pages.recover()
    _keep_older()
    held_pods.drop_gone()
    return [path for path in journal.checkpoints() if _recover_one(path)]


def recover_gone() -> None:
    """End the journals of pods that were deleted while they were held."""
    for path in journal.checkpoints():
        if is_pod_held(path):
            _recover_one(path)


def supervise(path: str) -> None:
    """Wait for the engine that writes the journal at *path*, and undo it if the engine has died."""
    if _recover_one(path, wait=True):
        huge_pages.recover()


def warn(pod: Pod) -> None:
    """Log what can end a container while it is held."""
    runtimes = {c.name: c.runtime for c in pod.running}
    for gap in model.gaps(runtimes, pod.annotations):
        log.warning("the pod may not stay as it is while it is held", reason=gap)


def keep(
    pod: Pod, tool: Runc, held: Journal[steps.Step], checkpoint_path: str, manifest: bytes
) -> None:
    """Record that the pod is held: its state goes on from the checkpoint about to be sealed.

    FailedPreconditionError if one of its containers has already been killed: it may have been
    started again.
    """
    hold = Hold(
        since=log.rfc3339(),
        namespace=pod.namespace,
        pod=pod.name,
        pod_uid=pod.uid,
        sandbox_id=pod.sandbox_id,
        runc_root=tool.root,
        checkpoint=checkpoint_path,
        manifest_sha256=hashlib.sha256(manifest).hexdigest(),
        containers={c.name: c.id for c in pod.running},
        is_whole=pod.is_whole,
    )
    held.record(steps.Hold(pod.uid))
    held_pods.keep(hold)
    for name, container_id in hold.containers.items():
        if not runc.is_alive(tool, container_id):
            raise PodStateError(
                f"pod {hold.name}: container {name} was killed while its checkpoint was taken; "
                "take it again"
            )


def resume(target: str) -> list[str]:
    """Let a pod that a checkpoint left frozen run on; what became of each of its containers.

    A container that was killed meanwhile is restored from the checkpoint when it is next created.
    FailedPreconditionError if no pod *target* (NAMESPACE/POD, its uid, or an id) is held, or if
    another pod on this node goes on in its place.
    """
    if not target:
        raise InvalidArgumentError("no pod or container is named; expected NAMESPACE/POD or an id")
    _keep_older()
    hold = _find(target)
    for life in lives.of(hold.manifest_sha256, but=hold.pod_uid):
        if not life.is_clone:
            raise SecondLifeError(
                f"pod {hold.name} is not resumed: pod {life.pod} on this node goes on from its "
                f"checkpoint {hold.checkpoint}; delete one of them"
            )
    tool = runc.installed(hold.runc_root, process.new_token())
    killed = [name for name in hold.containers if not runc.is_alive(tool, hold.containers[name])]
    if killed:
        _require_checkpoint(hold, killed[0])
    path = f"{journal.PODS_DIR}/{hold.sandbox_id}/{journal.CHECKPOINT}"
    held = _adopt(path)
    if held is not None:
        undo(held)
    elif os.path.exists(path):
        raise UnavailableError(f"pod {hold.name}: another grit command works on it; try again")
    ran_on = [name for name in hold.containers if runc.is_alive(tool, hold.containers[name])]
    hold = hold._replace(
        is_resumed=True,
        ran_on=tuple(ran_on),
        awaited=tuple(name for name in hold.containers if name not in ran_on),
    )
    held_pods.keep(hold)
    return model.fates(hold)


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
    held = _adopt(f"{pod_dir}/{journal.CHECKPOINT}")
    if held is not None:
        _forget(held)


def _adopt(path: str) -> Journal[steps.Step] | None:
    """The journal at *path* if its writer is dead; that of a held pod, once it is not looked at.

    The supervisor, and whoever kills a container, lock it for as long as they look.
    """
    return journal.adopt(path, steps.STEPS, wait=is_pod_held(path))


def _forget(held: Journal[steps.Step]) -> None:
    """Drop the journal of a pod that is gone: there is nothing to give back."""
    for step in held.steps():
        if isinstance(step, steps.Directory):
            shutil.rmtree(step.path, ignore_errors=True)
    end(held)


def end(held: Journal[steps.Step]) -> None:
    held.end()
    with suppress(OSError):  # the pod may have other state
        os.rmdir(os.path.dirname(held.path))


def _undo_steps(tool: Runc, taken: list[steps.Step], *, stopping: bool) -> None:
    """Undo steps, newest first; CUDA processes do not run before their GPUs are back."""
    if not stopping and (before := last(taken, steps.Standing)):
        suspension.stand_again(tool.token, before.pids)
    if kept := last(taken, steps.Kept):
        ptrace_agent.let_go(kept.pids)
    pids = {pid for step in taken if isinstance(step, steps.Gpu) for pid in step.pids}
    with suspension.standing(tool.token, sorted(pids)):
        for step in reversed(taken):
            _undo_step(tool, step, stopping=stopping)


def _undo_step(tool: Runc, step: steps.Step, *, stopping: bool) -> None:
    match step:
        case steps.Freeze(container):
            if stopping:
                runc.stop(tool, container)
            else:
                runc.resume(tool, container)
        case steps.Thaw(container):
            runc.pause(tool, container)
        case steps.Gpu(pids):
            suspension.bring_back_pids(tool.token, pids)
        case steps.Silence(path):
            network.unblock_egress(path)
        case steps.Link():
            link_remaps.drop([step])
        case steps.Hold(pod_uid):
            held_pods.drop(pod_uid)
        case steps.Directory(path):
            shutil.rmtree(path, ignore_errors=True)
        case (
            steps.Memory()
            | steps.MemoryBack()
            | steps.Begin()
            | steps.Frozen()
            | steps.Stop()
            | steps.Standing()
            | steps.Kept()
        ):
            pass  # nothing to take back, or that was done before anything else


def _recover_one(path: str, *, wait: bool = False) -> bool:
    held = journal.adopt(path, steps.STEPS, wait=wait)
    if held is None:
        return False
    if is_pod_held(held.path):
        if not _is_sandbox_gone(held):
            held.close()
            return False
        _forget(held)
        held_pods.drop_gone()
        return True
    begin = last(held.steps(), steps.Begin)
    outcome = begin.outcome if begin else None
    if outcome:
        outcome = outcome._replace(time=log.rfc3339(), error=INTERRUPTED)
    whose = outcomes.whose(outcome) if outcome else {}
    try:
        with log.about(**whose | {"attempt": begin.token if begin else ""}):
            undo(held)
    except SourceLostError as error:
        if outcome:
            outcome = outcome._replace(outcome=outcomes.LOST, reason=str(error), error=error.reason)
        raise
    finally:
        if outcome:
            records.append(outcome)
    return True


def _keep_older() -> None:
    """Record the holds of older versions, which are only in the journals of their checkpoints."""
    for path in journal.checkpoints():
        taken = journal.read(path, steps.STEPS)
        begin = last(taken, steps.Begin)
        if begin is None or begin.outcome is None:
            continue
        if has(taken, steps.Hold) or not has(taken, steps.Frozen):
            continue
        outcome = begin.outcome
        with suppress(FileNotFoundError), open(f"{outcome.checkpoint}/manifest.json", "rb") as file:
            data = file.read()
            sealed = manifests.parse(data)
            held_pods.keep(
                Hold(
                    since=outcome.time,
                    namespace=outcome.namespace,
                    pod=outcome.pod,
                    pod_uid=outcome.pod_uid,
                    sandbox_id=outcome.sandbox_id,
                    runc_root=begin.runc_root,
                    checkpoint=outcome.checkpoint,
                    manifest_sha256=hashlib.sha256(data).hexdigest(),
                    containers={c.name: c.id for c in sealed.running},
                    is_whole=True,
                )
            )


def _refuse_awaited(pod: Pod) -> None:
    """Refuse while a container still has to come back from an earlier checkpoint.

    A new checkpoint would be without it.
    """
    hold = held_pods.of(pod.uid)
    if hold is not None and hold.is_resumed:
        raise HeldError(
            f"pod {hold.name}: container {hold.awaited[0]} has not been restored yet from "
            f"{hold.checkpoint}; wait until it runs"
        )


def _find(target: str) -> Hold:
    matches = [
        hold
        for hold in held_pods.every()
        if target in (hold.name, hold.pod_uid)
        or any(id_.startswith(target) for id_ in (hold.sandbox_id, *hold.containers.values()))
    ]
    if len(matches) > 1:
        names = ", ".join(hold.sandbox_id[:13] for hold in matches)
        raise InvalidArgumentError(f"{target} names more than one held pod: {names}; give one id")
    if not matches:
        raise HeldError(f"pod {target} is not held frozen by a checkpoint")
    return matches[0]


def _require_checkpoint(hold: Hold, container: str) -> None:
    """Refuse without the checkpoint, since the state of a killed container is nowhere else."""
    directory, name = os.path.split(hold.checkpoint)
    try:
        with closing_fd(checkpoint_dir.open_named(directory, (name,))) as dir_fd:
            sha256 = checkpoint_dir.read_manifest(dir_fd, hold.checkpoint).sha256
        reason = "" if sha256 == hold.manifest_sha256 else "it is another one by now"
    except (GritError, OSError) as error:
        reason = one_line(error)
    if reason:
        raise HeldError(
            f"pod {hold.name}: container {container} was killed and is in checkpoint "
            f"{hold.checkpoint} only: {reason}; put it back, or delete the pod"
        )


def _is_sandbox_gone(held: Journal[steps.Step]) -> bool:
    """Whether runc no longer knows the pod.

    grit is not called when a pod of another runtime handler is deleted.
    """
    sandbox_id = os.path.basename(os.path.dirname(held.path))
    begin = last(held.steps(), steps.Begin)
    return begin is not None and not os.path.exists(f"{begin.runc_root}/{sandbox_id}")


def _journal_path(pod: Pod) -> str:
    return f"{journal.PODS_DIR}/{pod.sandbox_id}/{journal.CHECKPOINT}"
