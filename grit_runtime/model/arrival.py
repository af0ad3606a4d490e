"""The announcement of a checkpoint that is on its way to this node. Pure.

Whoever brings the checkpoint writes it, and restores on this node read it.
"""

from __future__ import annotations

import json
import re
from datetime import datetime

from grit_runtime.errors import FailedPreconditionError
from grit_runtime.startup import named
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_DIGEST = re.compile(r"(?:[0-9a-f]{64})?")
_TIME = re.compile(r"[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z")

_FITS: dict[type, Callable[[Any], bool]] = {
    int: lambda value: 0 <= value < 1 << 63,
    str: lambda value: value.isprintable(),
    bool: lambda _: True,
}


class Arrival(NamedTuple):
    """What is expected, and how far it is."""

    checkpoint: str  # the directory that it is to have
    manifest_sha256: str  # hex; "" for a checkpoint of another program, which has no manifest
    source: str  # where it comes from, for people
    size_bytes: int
    arrived_bytes: int
    begun: str  # RFC 3339, UTC
    ready: str  # the directory beside its place where all but memory is verified; "" until then
    is_whole: bool  # memory is verified there too; it may not be durable yet
    failed: str  # why nothing more will come, one line; "" while more may


def dump(arrival: Arrival) -> bytes:
    """The announcement as JSON."""
    return json.dumps(arrival._asdict(), indent=1).encode() + b"\n"


def parse(data: bytes) -> Arrival:
    """The announcement in *data*; FailedPreconditionError names what is not as it should be."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FailedPreconditionError(f"not JSON: {error}") from None
    kinds = named.types(Arrival)
    if not isinstance(value, dict) or value.keys() != kinds.keys():
        raise FailedPreconditionError(f"expected the fields {', '.join(kinds)}")
    for name, kind in kinds.items():
        if type(value[name]) is not kind or not _FITS[kind](value[name]):
            raise FailedPreconditionError(f"{name}: not {kind.__name__}: {value[name]!r:.60}")
    for name, pattern in (("manifest_sha256", _DIGEST), ("begun", _TIME)):
        if not pattern.fullmatch(value[name]):
            raise FailedPreconditionError(f"{name}: {value[name]!r:.60}")
    arrival = Arrival(**value)
    try:
        begun_s(arrival)
    except ValueError as error:
        raise FailedPreconditionError(f"begun: {error}") from None
    return arrival


def begun_s(arrival: Arrival) -> float:
    """When it began, in seconds since the epoch."""
    return datetime.fromisoformat(arrival.begun).timestamp()


def progress(arrival: Arrival) -> str:
    """How much of the checkpoint is here, as ``12.3 of 40.1 GiB``."""
    unit, name = (1 << 30, "GiB") if arrival.size_bytes >= 1 << 30 else (1 << 20, "MiB")
    return f"{arrival.arrived_bytes / unit:.1f} of {arrival.size_bytes / unit:.1f} {name}"
