"""What a check has found on this node."""

from __future__ import annotations

from grit_runtime import reasons
from grit_runtime.errors import INTERRUPTED, one_line, reason
from grit_runtime.startup.named import NamedTuple

OK = "ok"
WARNING = "warning"  # pods can be moved, but not all, or slowly, or not for long
BROKEN = "broken"
ABSENT = "absent"  # not there and not missed, or nothing to be seen since something else is broken


class Finding(NamedTuple):
    name: str
    verdict: str
    evidence: str
    remedy: str = ""
    reason: str = ""  # of docs/errors.md: what fails, fails with it


def ok(evidence: str) -> Finding:
    return Finding("", OK, evidence)


def absent(evidence: str) -> Finding:
    return Finding("", ABSENT, evidence)


def warning(evidence: str, remedy: str) -> Finding:
    return Finding("", WARNING, evidence, remedy)


def broken(evidence: str, remedy: str, reason: str) -> Finding:
    return Finding("", BROKEN, evidence, remedy, reason)


def failed(error: Exception) -> Finding:
    """What an error says, with the remedy of its reason."""
    why = reason(error)
    page = reasons.find(why)
    text = f"{type(error).__name__}: {one_line(error)}" if why == INTERRUPTED else one_line(error)
    return broken(text, page.remedy if page else "", why)
