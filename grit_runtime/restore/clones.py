"""Refusing to let one state go on twice: two pods of this node from the same checkpoint.

A pod template with the annotation would make every replica, and every later pod, go on from the
same moment; an annotation allows that explicitly. Nothing is known here about other nodes.
"""

from __future__ import annotations

import os

from grit_runtime.errors import SecondLifeError
from grit_runtime.host import journal, procfs, runc
from grit_runtime.model.restore_steps import Claim
from grit_runtime.pod import held_pods, lives

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.files.checkpoint_dir import Checkpoint
    from grit_runtime.host.journal import Journal
    from grit_runtime.host.runc import Runc
    from grit_runtime.model.annotations import Identity
    from grit_runtime.model.restore_steps import Step

_REMEDY = 'delete it first, or say grit.dev/clone: "true" if two are to go on from one state'


def claim(
    attempt: Journal[Step],
    tool: Runc,
    identity: Identity,
    sealed: Checkpoint,
    path: str,
    *,
    allowed: bool,
) -> None:
    """Record that this pod is about to be restored from the checkpoint at *path*.

    FailedPreconditionError if it is not *allowed* to be the second: the pod that the checkpoint was
    taken of runs here and is not held, or another pod is restored from it.
    """
    with journal.locked(journal.PODS_DIR):  # two that begin at once must see each other
        attempt.record(
            Claim(
                sealed.sha256,
                pid=os.getpid(),
                started=procfs.started_ticks(os.getpid()),
                is_clone=allowed,
            )
        )
        if not allowed:
            _refuse_beside_source(tool, identity, sealed, path)
            _refuse_beside_another(identity, sealed, path)


def _refuse_beside_source(tool: Runc, identity: Identity, sealed: Checkpoint, path: str) -> None:
    source = sealed.manifest.pod
    if not source.uid or source.uid == identity.pod_uid:
        return
    hold = held_pods.of(source.uid) if "/" not in source.uid else None
    if (hold is None or hold.is_resumed) and runc.runs_of_pod(tool, source.uid):
        raise SecondLifeError(
            f"pod {source.namespace}/{source.name}, of which checkpoint {path} was taken, runs on "
            f"this node and is not held; {_REMEDY}"
        )


def _refuse_beside_another(identity: Identity, sealed: Checkpoint, path: str) -> None:
    for life in lives.of(sealed.sha256, but=identity.pod_uid):
        raise SecondLifeError(
            f"pod {life.pod} on this node goes on from checkpoint {path} already; {_REMEDY}"
        )
