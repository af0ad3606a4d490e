"""The holds of older versions, which are only in the journals of their checkpoints."""

from __future__ import annotations

import hashlib
from contextlib import suppress

from grit_runtime import log
from grit_runtime.errors import FailedPreconditionError
from grit_runtime.host import journal
from grit_runtime.model import checkpoint_steps as steps
from grit_runtime.model import manifest as manifests
from grit_runtime.model.hold import Hold
from grit_runtime.model.steps import has, last
from grit_runtime.pod import held_pods


def keep() -> None:
    """Record the holds of older versions, which are only in the journals of their checkpoints."""
    for path in journal.checkpoints():
        try:
            taken = journal.read(path, steps.STEPS)
        except FileNotFoundError:  # it has just ended
            continue
        except FailedPreconditionError as error:
            log.warning("a journal is passed over", journal=path, reason=error)
            continue
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
