"""Holding a pod frozen after its checkpoint, and letting it run on."""

from __future__ import annotations

import hashlib
import os

from grit_runtime import log
from grit_runtime.checkpoint import older_holds, undoing
from grit_runtime.errors import (
    GritError,
    HeldError,
    InvalidArgumentError,
    PodStateError,
    SecondLifeError,
    UnavailableError,
    one_line,
)
from grit_runtime.files import checkpoint_dir
from grit_runtime.host import journal, process, runc
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import checkpoint_steps as steps
from grit_runtime.model import hold as model
from grit_runtime.model.hold import Hold
from grit_runtime.pod import held_pods, lives

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.host.containerd import Pod
    from grit_runtime.host.journal import Journal
    from grit_runtime.host.runc import Runc


def begin(pod: Pod) -> Journal[steps.Step]:
    """The pod's journal, with the supervisor watching it."""
    _refuse_awaited(pod)
    return undoing.begin(_journal_path(pod.sandbox_id), f"pod {pod.namespace}/{pod.name}")


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
    older_holds.keep()
    hold = _find(target)
    held = _adopted(hold)
    try:
        hold = _find(hold.pod_uid)  # as it is now
        tool = runc.installed(hold.runc_root, process.new_token())
        _require_sealed(tool, hold)
        _let_go(hold)
    except BaseException:
        if held is not None:
            held.close()
        raise
    if held is not None:
        undoing.undo(held, resuming=True)
    ran_on = [name for name in hold.containers if runc.is_alive(tool, hold.containers[name])]
    hold = hold._replace(
        is_resumed=True,
        ran_on=tuple(ran_on),
        awaited=tuple(name for name in hold.containers if name not in ran_on),
    )
    held_pods.keep(hold)
    return model.fates(hold)


def _let_go(hold: Hold) -> None:
    """Record that the pod is about to run; SecondLifeError if another goes on in its place."""
    os.makedirs(journal.PODS_DIR, mode=0o700, exist_ok=True)
    with journal.locked(journal.PODS_DIR):  # of this and a restore that begin at once one sees it
        for life in lives.of(hold.manifest_sha256, but=hold.pod_uid):
            if not life.is_clone:
                raise SecondLifeError(
                    f"pod {hold.name} is not resumed: pod {life.pod} on this node goes on from its "
                    f"checkpoint {hold.checkpoint}; delete one of them"
                )
        held_pods.keep(hold._replace(is_resuming=True))


def _adopted(hold: Hold) -> Journal[steps.Step] | None:
    """What is to be given back to the pod; None if its containers are gone, and that with them."""
    path = _journal_path(hold.sandbox_id)
    held = undoing.adopt(path)
    if held is None and os.path.exists(path):
        raise UnavailableError(f"pod {hold.name}: another grit command works on it; try again")
    return held


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


def _require_sealed(tool: Runc, hold: Hold) -> None:
    """Refuse without the checkpoint, if the state of a killed container is nowhere else."""
    killed = [name for name in hold.containers if not runc.is_alive(tool, hold.containers[name])]
    if not killed:
        return
    directory, name = os.path.split(hold.checkpoint)
    try:
        with closing_fd(checkpoint_dir.open_named(directory, (name,))) as dir_fd:
            sha256 = checkpoint_dir.read_manifest(dir_fd, hold.checkpoint).sha256
        reason = "" if sha256 == hold.manifest_sha256 else "it is another one by now"
    except (GritError, OSError) as error:
        reason = one_line(error)
    if reason:
        raise HeldError(
            f"pod {hold.name}: container {killed[0]} was killed and is in checkpoint "
            f"{hold.checkpoint} only: {reason}; put it back, or delete the pod"
        )


def _journal_path(sandbox_id: str) -> str:
    return f"{journal.PODS_DIR}/{sandbox_id}/{journal.CHECKPOINT}"
