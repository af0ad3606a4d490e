"""Refusing to let one state go on twice: two pods of this node from the same checkpoint.

A pod template with the annotation would make every replica, and every later pod, go on from the
same moment; an annotation allows that explicitly. Nothing is known here about other nodes.
"""

from __future__ import annotations

import os
import time

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
# For a pod that is ending: its owner makes the next one as soon as it begins to, and kubelet would
# try again after 10 s and more only.
_ENDS_S = 10.0
_LOOK_EVERY_S = 0.1


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

    SecondLifeError if it is not *allowed* to be the second, and the first does not end within 10 s:
    the pod that the checkpoint was taken of, which is not held, or one that is restored from it.
    """
    own = Claim(
        sealed.sha256,
        pid=os.getpid(),
        started=procfs.started_ticks(os.getpid()),
        is_clone=allowed,
    )
    end_s = time.monotonic() + _ENDS_S
    while True:
        with journal.locked(journal.PODS_DIR):  # of two that begin at once one must see the other
            first = None if allowed else _first(tool, identity, sealed, path)
            if first is None:
                attempt.record(own)
                return
        if time.monotonic() > end_s:
            raise SecondLifeError(f"{first}; {_REMEDY}")
        time.sleep(_LOOK_EVERY_S)


def _first(tool: Runc, identity: Identity, sealed: Checkpoint, path: str) -> str | None:
    """Another pod of this node that has the state, in words."""
    source = sealed.manifest.pod
    if source.uid and source.uid != identity.pod_uid:
        hold = held_pods.of(source.uid) if "/" not in source.uid else None
        if (hold is None or hold.may_run) and runc.runs_of_pod(tool, source.uid):
            return (
                f"pod {source.namespace}/{source.name}, of which checkpoint {path} was taken, runs "
                "on this node and is not held"
            )
    for life in lives.of(sealed.sha256, but=identity.pod_uid):
        return f"pod {life.pod} on this node goes on from checkpoint {path} already"
    return None
