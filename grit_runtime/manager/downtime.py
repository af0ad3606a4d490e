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


def seconds(source: Iterable[Record], target: Iterable[Record], sha256: str) -> float | None:
    """From the source's standing still to the target's last container running, by both clocks.

    *sha256* is the manifest's. None if a record does not say.
    """
    since = [at for one in source if (at := _stood_since(one)) is not None]
    until = [at for one in target if (at := _ran_since(one, sha256)) is not None]
    return round(max(0.0, max(until) - since[-1]), 3) if since and until else None


def _stood_since(record: Record) -> float | None:
    if record["outcome"] != "sealed" or not record.get("begun_s"):
        return None
    begins: list[float] = []
    for phase in record["timeline"]:
        if phase["phase"] == _RUNS_ON:
            begins.clear()
        elif phase["phase"] in _STANDS:
            begins.append(phase["begin_s"])
    return record["begun_s"] + min(begins) if begins else None


def _ran_since(record: Record, sha256: str) -> float | None:
    if record["outcome"] != "restored" or record["manifest_sha256"] != sha256:
        return None
    ends = [phase["begin_s"] + phase["seconds"] for phase in record["timeline"]]
    return record["begun_s"] + max(ends) if ends and record.get("begun_s") else None
