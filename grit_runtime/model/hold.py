"""A pod that is held frozen by its checkpoint. Pure.

Its state goes on from the checkpoint or, after `grit resume`, here; its containers never start cold
beside that.
"""

from __future__ import annotations

import json
from typing import Any

from grit_runtime.model import outcomes
from grit_runtime.model.annotations import Identity, RestoreOrder, strict, tcp
from grit_runtime.model.outcomes import Outcome
from grit_runtime.startup.named import NamedTuple

# Only on pods that were applied directly by kubectl; pods of a Deployment do not have it.
_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
KILLING_PROBES = ("livenessProbe", "startupProbe")
# Probes that a frozen process fails to answer; exec probes are not run in a frozen container.
ASKED_OVER = ("httpGet", "grpc")

_OUR_SHIM = "io.containerd.grit.v1"
_OUR_PROGRAM = "grit-runtime"


class Hold(NamedTuple):
    """What is held, since when, by which checkpoint, and what became of it since."""

    since: str  # RFC 3339, UTC
    namespace: str
    pod: str
    pod_uid: str
    sandbox_id: str
    runc_root: str
    checkpoint: str  # its directory
    manifest_sha256: str
    containers: dict[str, str]  # those that were frozen: ids by names
    is_whole: bool  # all of the pod is held, not one container alone
    is_resuming: bool = False  # it is about to run, or runs already
    is_resumed: bool = False
    ran_on: tuple[str, ...] = ()  # once resumed: those that were alive
    awaited: tuple[str, ...] = ()  # once resumed: those that were killed, until they are restored

    @property
    def name(self) -> str:
        return f"{self.namespace}/{self.pod}"

    @property
    def may_run(self) -> bool:
        return self.is_resuming or self.is_resumed

    @property
    def is_over(self) -> bool:
        return self.is_resumed and not self.awaited

    def forbids(self, container: str) -> bool:
        """Whether *container* may not start at all."""
        return not self.is_resumed and (self.is_whole or container in self.containers)


def gaps(runtimes: dict[str, str], annotations: dict[str, str]) -> list[str]:
    """Why a pod will not stay as it is while it is held, as far as that can be known here.

    *runtimes* are what runs its containers, by their names; *annotations* are the pod's.
    """
    found = [
        f"container {name} is not run by grit-runtime but by {runtime}: if kubelet kills it while "
        "it is held, it starts cold beside the one that goes on"
        for name, runtime in runtimes.items()
        if runtime != _OUR_SHIM and runtime.rpartition("/")[2] != _OUR_PROGRAM
    ]
    return found + [
        f"container {name} has a {probe} by {how}, which it cannot answer while it is held: "
        "kubelet kills it, and grit resume has it restored from the checkpoint"
        for name, probe, how in _probes(annotations.get(_APPLIED, "{}"))
        if name in runtimes
    ]


def _probes(applied: str) -> list[tuple[str, str, str]]:
    """The probes of a pod's manifest in JSON that kill; none where it is not what it should be."""
    try:
        value: Any = json.loads(applied)
        containers = value["spec"]["containers"]
        return [
            (str(container["name"]), probe, how)
            for container in containers
            for probe in KILLING_PROBES
            for how in ASKED_OVER
            if how in container.get(probe, ())
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def refusal(hold: Hold, container: str) -> str:
    return (
        f"container {container} is not started: pod {hold.name} has been held for checkpoint "
        f"{hold.checkpoint} since {hold.since}, and may go on elsewhere from there; run grit "
        f"resume {hold.name} to have it restored here, or delete the pod"
    )


def second_life(hold: Hold, identity: Identity, annotations: dict[str, str]) -> RestoreOrder | None:
    """The order to restore a killed container of a resumed pod; None if it was not killed."""
    if identity.container not in hold.awaited:
        return None
    return RestoreOrder(
        path=(hold.namespace, hold.checkpoint.rpartition("/")[2]),
        identity=identity,
        device_map="auto",
        cold_on_failure=False,
        skip_completed=False,
        tcp=tcp(annotations),
        strict=strict(annotations),
        manifest_sha256=hold.manifest_sha256,
        is_second_life=True,
        beside_living=bool(hold.ran_on),
        keeps_volumes=bool(hold.ran_on) or identity.sandbox_id == hold.sandbox_id,
    )


def fates(hold: Hold) -> list[str]:
    """What became of each container of a pod that was resumed, as a person reads it."""
    return [
        *(f"container {name} runs on" for name in hold.ran_on),
        *(
            f"container {name} was killed and is restored from {hold.checkpoint} when it is next "
            "started"
            for name in hold.awaited
        ),
    ]


def outcome(hold: Hold) -> Outcome:
    """The hold as `grit status` shows it."""
    reason = (
        "; ".join(fates(hold))
        if hold.is_resumed
        else "held until grit resume, or the pod's deletion"
    )
    return Outcome(
        time=hold.since,
        outcome=outcomes.HELD,
        reason=reason,
        namespace=hold.namespace,
        pod=hold.pod,
        pod_uid=hold.pod_uid,
        sandbox_id=hold.sandbox_id,
        container="",
        container_id="",
        checkpoint=hold.checkpoint,
        manifest_sha256=hold.manifest_sha256,
    )
