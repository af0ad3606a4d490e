"""Probes by which kubelet kills a container that stands still. Pure."""

from __future__ import annotations

from grit_runtime.model.hold import ASKED_OVER, KILLING_PROBES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def impatient(pod_spec: Mapping[str, Any], stood_s: float) -> list[str]:
    """Those that may have failed often enough while the pod stood still for so long."""
    return [
        f"container {container['name']}: its {name} gives up after {limit_s:g} s, and the pod "
        f"stood still for {stood_s:.1f} s: if kubelet has killed it, as an event of the pod says, "
        "it starts from its image"
        for container in pod_spec["containers"]
        for name in KILLING_PROBES
        if (probe := container.get(name))
        and any(how in probe for how in ASKED_OVER)
        and (limit_s := _patience_s(probe)) < stood_s
    ]


def _patience_s(probe: Mapping[str, Any]) -> float:
    """From the first unanswered probe to the last that is waited for; with the API's defaults."""
    times, period_s = probe.get("failureThreshold", 3), probe.get("periodSeconds", 10)
    return float((times - 1) * period_s + probe.get("timeoutSeconds", 1))
