"""An outcome, for the tests of what is kept and made of outcomes."""

from grit_runtime.model.outcomes import RESTORED, Outcome

NOW = Outcome(
    time="2026-11-25T03:00:00Z",
    outcome=RESTORED,
    reason="",
    namespace="default",
    pod="counter",
    pod_uid="uid",
    sandbox_id="sandbox",
    container="main",
    container_id="id",
    checkpoint="/c/nightly",
    manifest_sha256="1" * 64,
)
