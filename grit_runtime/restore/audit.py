"""Running containers that an older version restored with more than their pod's spec gives them."""

from __future__ import annotations

from grit_runtime.errors import NotFoundError
from grit_runtime.host import config_json, journal, process, runc
from grit_runtime.host.runc import Runc
from grit_runtime.model import outcomes, restored_check
from grit_runtime.model.restore_steps import STEPS, Restore, Restored, Started
from grit_runtime.model.steps import has, last
from grit_runtime.pod import bundle
from grit_runtime.restore import attempts
from grit_runtime.tasks import restored_tasks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from grit_runtime.model.outcomes import Outcome


def wider_mounts() -> Iterator[Outcome]:
    """The containers of this node that have a mount wider than config.json allows."""
    for path in journal.beneath(journal.PODS_DIR, f"*/*/{attempts.JOURNAL}"):
        steps = journal.read(path, STEPS)
        restore, restored = last(steps, Restore), last(steps, Restored)
        if restore is None or restored is None or not has(steps, Started):
            continue
        tool = Runc(restore.program, restore.global_options, process.new_token())
        try:
            state = runc.state(tool, restore.container_id)
        except NotFoundError:
            continue
        live = bundle.live(state.bundle_dir, config_json.read(state.bundle_dir))
        wide = restored_check.wider(live.mounts, restored_tasks.read_mounts(state.pid))
        if state.status != "stopped" and wide:
            yield restored.outcome._replace(outcome=outcomes.WIDER, reason="; ".join(wide))
