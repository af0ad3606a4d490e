"""Spans of time, as texts. Pure."""

from __future__ import annotations

import re

from grit_runtime.errors import InvalidArgumentError

_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_PART = re.compile(r"([0-9]{1,9})([dhms])")
_WHOLE = re.compile(rf"(?:{_PART.pattern})+")


def seconds(text: str) -> int:
    """Of a text like ``90s``, ``1h30m`` or ``7d``; InvalidArgumentError if it is none, or 0."""
    found = 0
    if _WHOLE.fullmatch(text):
        found = sum(int(number) * _SECONDS[unit] for number, unit in _PART.findall(text))
    if not found:
        raise InvalidArgumentError(f"{text[:40]!r}: expected a time like 90s, 1h30m or 7d")
    return found


def shown(seconds: float) -> str:
    """As ``0.4s``, ``1m23s`` or ``2h05m``: two units, as kubectl shows ages."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest_s:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 24 else f"{hours // 24}d{hours % 24:02}h"
