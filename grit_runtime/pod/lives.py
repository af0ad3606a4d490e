"""The pods of this node that go on from a checkpoint, or are about to, by their attempts."""

from __future__ import annotations

from grit_runtime.host import journal, procfs
from grit_runtime.model.restore_steps import STEPS, Begin, Claim, Restored
from grit_runtime.model.steps import last
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.model.restore_steps import Step

ATTEMPT_JOURNAL = "attempt.journal"


class Life(NamedTuple):
    pod: str  # NAMESPACE/POD
    is_clone: bool  # its annotation allows more than one


def of(manifest_sha256: str, *, but: str) -> list[Life]:
    """The pods that go on from the checkpoint with this manifest, except the one with uid *but*.

    A container's attempt is kept for as long as the container exists.
    """
    lives = []
    for path in journal.beneath(journal.PODS_DIR, f"*/*/{ATTEMPT_JOURNAL}"):
        try:
            steps = journal.read(path, STEPS)
        except FileNotFoundError:  # the attempt has just ended
            continue
        begin, claim = last(steps, Begin), last(steps, Claim)
        if begin is None or begin.outcome.pod_uid in ("", but):
            continue
        if _goes_on_from(steps) == manifest_sha256:
            pod = f"{begin.outcome.namespace}/{begin.outcome.pod}"
            lives.append(Life(pod, is_clone=claim is not None and claim.is_clone))
    return lives


def _goes_on_from(steps: list[Step]) -> str | None:
    """The digest of the manifest that an attempt has restored, or is restoring; None if it died."""
    if restored := last(steps, Restored):
        return restored.outcome.manifest_sha256
    claim = last(steps, Claim)
    if claim and procfs.started_ticks(claim.pid) == claim.started:
        return claim.manifest_sha256
    return None
