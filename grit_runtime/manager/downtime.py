"""How long a pod that has moved stood still, as the records of its two nodes have it. Pure."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Record = dict[str, Any]  # docs/records.md

# What a pod stands still from, the first of them: its CUDA processes before the others.
_STANDS = ("gpu lock", "freeze")
_RUNS_ON = "thaw"  # it had to be frozen anew
_BEGIN = "epoch_s"  # of a phase, which older records do not have


def seconds(source: Iterable[Record], target: Iterable[Record], sha256: str) -> float | None:
    """From the source's standing still to the target's last container running, by both clocks.

    *sha256* is the manifest's. None if a record does not say.
    """
    since = [at for one in source if (at := _stood_since(one)) is not None]
    until = [at for one in target if (at := _ran_since(one, sha256)) is not None]
    return round(max(0.0, max(until) - since[-1]), 3) if since and until else None


def _stood_since(record: Record) -> float | None:
    if record["outcome"] != "sealed":
        return None
    begins: list[float] = []
    for phase in record["timeline"]:
        if phase["phase"] == _RUNS_ON:
            begins.clear()
        elif phase["phase"] in _STANDS and _BEGIN in phase:
            begins.append(phase[_BEGIN])
    return min(begins, default=None)


def _ran_since(record: Record, sha256: str) -> float | None:
    if record["outcome"] != "restored" or record["manifest_sha256"] != sha256:
        return None
    ends = [phase[_BEGIN] + phase["seconds"] for phase in record["timeline"] if _BEGIN in phase]
    return max(ends, default=None)
