"""What is known to come back different: reported when a checkpoint is taken. Pure.

The kinds are a contract with users, like the reasons of errors: scripts and alerts go by them.
docs/limits.md has a row for each. Who finds them: checkpoint/preflight.py and tasks/readback.py
before the freeze, checkpoint/freezing.py at it.
"""

from __future__ import annotations

from grit_runtime.startup.named import NamedTuple

KINDS = (
    "EventfdSemaphore",
    "FifoHangup",
    "InodeNumbers",
    "KeysLost",
    "LandlockLost",
    "NotAsked",
    "PeerCredentials",
    "ReceivedLost",
    "WatchEventsLost",
)


class Loss(NamedTuple):
    """A loss of a process; *pid* is the node's, 0 if the whole container loses it."""

    kind: str  # one of KINDS
    container: str
    pid: int
    text: str  # what of it will be different, and what to do


def line(loss: Loss) -> str:
    """A loss as a person reads it."""
    process = f"process {loss.pid} in " if loss.pid else ""
    return f"{process}container {loss.container} {loss.text} ({loss.kind})"


def refusal(losses: tuple[Loss, ...]) -> str:
    """Why a strict checkpoint is refused, in one line."""
    return f"strict, and not all would come back as it is: {'; '.join(map(line, losses))}"
