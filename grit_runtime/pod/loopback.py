"""Blocking a pod's loopback traffic while its containers come back one by one.

A restored TCP socket probes its peer at once, and gets a reset if the peer is not restored yet. So
from the first to the last container of such a pod its loopback interface passes nothing. A process
blocks the traffic and unblocks it after a time; its journal is in the pod's directory.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from grit_runtime import log
from grit_runtime.errors import CommandError
from grit_runtime.host import journal, process
from grit_runtime.model.steps import Steps
from grit_runtime.pod import network
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.host.journal import Journal

_JOURNAL = "loopback.journal"
_LIMIT_S = 30


class Hold(NamedTuple):
    """The process *pid* blocks the loopback interface of the network namespace *path*."""

    path: str
    pid: int


STEPS: Steps[Hold] = Steps(Hold)


def hold(pod_dir: str, namespace: str) -> None:
    """Block the pod's loopback traffic for 30 s at most, unless it is blocked already.

    The caller holds the pod's lock. Returns once nothing passes any more.
    """
    path = f"{pod_dir}/{_JOURNAL}"
    if os.path.exists(path):
        return
    read_fd, write_fd = os.pipe()

    def keep() -> None:
        loopback_journal = journal.begin(path, STEPS)
        loopback_journal.record(Hold(namespace, os.getpid()))
        network.hold_loopback(namespace)
        os.write(write_fd, b".")
        os.close(write_fd)
        time.sleep(_LIMIT_S)
        _undo(loopback_journal)

    process.detached(keep, kept_fd=write_fd)
    os.close(write_fd)
    with open(read_fd, "rb") as file:
        if not file.read():
            release(pod_dir)
            raise CommandError(f"loopback traffic of {namespace} cannot be held")
    log.info("holding loopback traffic", namespace=namespace)


def recover(pod_dir: str) -> None:
    """Unblock the traffic if the process that blocks it has died."""
    loopback_journal = journal.adopt(f"{pod_dir}/{_JOURNAL}", STEPS)
    if loopback_journal is not None:
        _undo(loopback_journal)


def release(pod_dir: str) -> None:
    """Unblock the traffic, whether the process that blocks it lives or not."""
    path = f"{pod_dir}/{_JOURNAL}"
    loopback_journal = journal.adopt(path, STEPS)
    if loopback_journal is None:  # there is no journal, or its process lives
        with suppress(FileNotFoundError, ProcessLookupError):
            for step in journal.read(path, STEPS):
                os.kill(step.pid, signal.SIGKILL)
        loopback_journal = journal.adopt(path, STEPS, wait=True)
    if loopback_journal is not None:
        _undo(loopback_journal)
        log.info("loopback traffic passes again", pod_dir=pod_dir)


def _undo(loopback_journal: Journal[Hold]) -> None:
    for step in loopback_journal.steps():
        network.let_loopback_pass(step.path)
    loopback_journal.end()
