"""Holding a pod's loopback traffic while its containers come back one by one.

A restored TCP socket probes its peer at once, and a peer that is not back yet answers with a reset.
So between the first and the last container of such a pod nothing passes on its loopback interface.
It is held by a process that lets it go after a time; its journal is the pod's.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from grit_runtime import log
from grit_runtime.errors import CommandError
from grit_runtime.host import journal, network, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.host.journal import Journal

_JOURNAL = "loopback.journal"
_LIMIT_S = 30


def hold(pod_dir: str, namespace: str) -> None:
    """Hold the loopback traffic of the pod, if it is not held, for 30 s at most.

    The caller holds the pod's lock. Returns when nothing passes any more.
    """
    path = f"{pod_dir}/{_JOURNAL}"
    if os.path.exists(path):
        return
    read_fd, write_fd = os.pipe()

    def keep() -> None:
        held = journal.begin(path)
        held.record("hold", path=namespace, pid=os.getpid())
        network.hold_loopback(namespace)
        os.write(write_fd, b".")
        os.close(write_fd)
        time.sleep(_LIMIT_S)
        _undo(held)

    process.detached(keep, kept_fd=write_fd)
    os.close(write_fd)
    with open(read_fd, "rb") as file:
        if not file.read():
            let_go(pod_dir)
            raise CommandError(f"loopback traffic of {namespace} cannot be held")
    log.info("holding loopback traffic", namespace=namespace)


def recover(pod_dir: str) -> None:
    """Let it pass again if the process that holds it has died."""
    held = journal.adopt(f"{pod_dir}/{_JOURNAL}")
    if held is not None:
        _undo(held)


def let_go(pod_dir: str) -> None:
    """Let it pass again, whether the process that holds it lives or not."""
    path = f"{pod_dir}/{_JOURNAL}"
    held = journal.adopt(path)
    if held is None:  # there is none, or its process lives
        with suppress(FileNotFoundError, ProcessLookupError):
            for step in journal.read(path):
                os.kill(step["pid"], signal.SIGKILL)
        held = journal.adopt(path, wait=True)
    if held is not None:
        _undo(held)
        log.info("loopback traffic passes again", pod_dir=pod_dir)


def _undo(held: Journal) -> None:
    for step in held.steps():
        network.let_loopback_pass(step["path"])
    held.end()
