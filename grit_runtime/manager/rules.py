"""What a spec must be beyond its schema: as CEL for servers that have it, and for the webhook.

Pure. Both say the same, so an object is refused with the same words by either.
"""

from __future__ import annotations

import re
from typing import Any

from grit_runtime.manager import api, timetable
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class Rule(NamedTuple):
    message: str
    cel: str
    holds: Callable[[Any], bool]


IMMUTABLE = "spec cannot be changed; delete the object and make another"

_ONE_POD = Rule(
    "expected podName or selector, and not both",
    "(has(self.podName) && self.podName != '') != has(self.selector)",
    lambda spec: (spec.pod_name != "") != (spec.selector is not None),
)
_ONE_STORAGE = Rule(
    "storage: expected claimName or url, and not both",
    "!has(self.storage) || has(self.storage.claimName) != has(self.storage.url)",
    lambda spec: not spec.storage or bool(spec.storage.claim_name) != bool(spec.storage.url),
)
_A_STORE = Rule(
    "storage.url: expected file:///DIRECTORY, s3://BUCKET, gs://BUCKET or az://ACCOUNT/CONTAINER",
    "!has(self.storage) || !has(self.storage.url) || self.storage.url == '' || "
    f"self.storage.url.matches('{api.STORE}')",
    lambda spec: not url(spec) or re.match(api.STORE, url(spec)) is not None,
)
_ONE_WAY = Rule(
    "expected volumeClaim or storage, and not both",
    "!has(self.volumeClaim) || !has(self.storage)",
    lambda spec: not spec.volume_claim or not spec.storage,
)
_SOME_POD = Rule(
    "expected ownerRef or selector: which new pod is to be restored",
    "(has(self.ownerRef) && self.ownerRef.uid != '') || has(self.selector)",
    lambda spec: spec.owner is not None or spec.selector is not None,
)
_SOME_TIME = Rule(
    "expected interval, cron or triggers: when checkpoints are to be taken",
    "has(self.interval) || has(self.cron) || (has(self.triggers) && size(self.triggers) > 0)",
    lambda spec: bool(spec.interval or spec.cron or spec.triggers),
)
_ONE_CLOCK = Rule(
    "expected interval or cron, and not both",
    "!has(self.interval) || !has(self.cron)",
    lambda spec: not spec.interval or not spec.cron,
)
_FIVE_FIELDS = Rule(
    "cron: expected five fields that mean some time, as 0 3 * * *",
    r"!has(self.cron) || self.cron == '' || self.cron.matches('^\\s*(\\S+\\s+){4}\\S+\\s*$')",
    lambda spec: not spec.cron or timetable.is_cron(spec.cron),
)

RULES = {
    api.CheckpointSpec: (_ONE_POD, _ONE_WAY, _ONE_STORAGE, _A_STORE),
    api.RestoreSpec: (_SOME_POD,),
    api.MigrationSpec: (_ONE_POD, _ONE_STORAGE, _A_STORE),
    api.CheckpointScheduleSpec: (
        *(_ONE_POD, _SOME_TIME, _ONE_CLOCK, _FIVE_FIELDS),
        *(_ONE_STORAGE, _A_STORE),
    ),
}
MUTABLE = {api.CheckpointScheduleSpec}

# Who may name a store is asked when an object is made, which no manager that is away lets pass.
SAME_STORE = "storage.url cannot be changed; delete the object and make another"
SAME_STORE_CEL = (
    "!has(self.storage) || !has(self.storage.url) || self.storage.url == '' || "
    "(has(oldSelf.storage) && has(oldSelf.storage.url) && oldSelf.storage.url == self.storage.url)"
)


def url(spec: Any) -> str:
    """The store that the spec names; "" for none, and for a Restore's."""
    storage = getattr(spec, "storage", None)
    return storage.url if storage else ""


def refusals(spec: Any, old: Any = None) -> list[str]:
    """Why an object with *spec* is refused; *old* is the spec that it has in the API server.

    One that is not changed is not refused: it may be older than a rule.
    """
    if spec == old:
        return []
    changed = []
    if old is not None and type(spec) not in MUTABLE:
        changed = [IMMUTABLE]
    elif old is not None and url(spec) not in ("", url(old)):
        changed = [SAME_STORE]
    return changed + [rule.message for rule in RULES[type(spec)] if not rule.holds(spec)]
