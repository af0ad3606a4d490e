"""Threads that have something to themselves, and processes that share what only threads do.

Spec: unshare(2) CLONE_FILES and CLONE_FS, clone(2) CLONE_VM, kcmp(2), namespaces(7);
proc_pid_timers(5), and of CRIU
https://github.com/checkpoint-restore/criu/issues/2887.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from grit_runtime.host import linux, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_VFORK_BEGINS_S = 0.5
_LOOK_EVERY_S = 0.01


def apart(pid: int) -> list[tuple[int, str]]:
    """What threads of a process have of their own, each with the first such thread."""
    apart_tids: dict[str, int] = {}
    with suppress(FileNotFoundError, ProcessLookupError):  # the process has ended
        own = procfs.namespaces(pid).items()
        for tid in sorted(map(int, os.listdir(f"/proc/{pid}/task"))):
            if tid != pid:
                for what in _apart(pid, tid):
                    apart_tids.setdefault(what, tid)
                for kind, _ in procfs.namespaces(tid).items() - own:
                    apart_tids.setdefault(f"a {kind} namespace", tid)
    return [(tid, what) for what, tid in apart_tids.items()]


def has_own_timer(pid: int) -> bool:
    """Whether a timer of a process in a PID namespace signals the first thread, and no other."""
    timers = procfs.text(pid, "timers").splitlines()
    is_inside = procfs.container_pid(procfs.status(pid)) != pid
    return is_inside and any(line.endswith(f"/tid.{pid}") for line in timers)


def shared_with_parent(pid: int) -> list[str]:
    """What a process has in common with its parent by clone(2), but for a vfork that ends soon."""
    parent = procfs.parent(pid)
    shared = []
    with suppress(ProcessLookupError):
        if _shares_memory(parent, pid):
            shared.append("memory (CLONE_VM)")
        if not linux.differ(parent, pid, linux.KCMP_FS):
            shared.append("working directory and umask (CLONE_FS)")
    return shared


def _shares_memory(parent: int, pid: int) -> bool:
    """Whether a process shares its parent's memory, which does not wait for it in vfork.

    Asked again and again: a child is there before its parent waits, for long if that does not get a
    processor, and may begin its program.
    """
    deadline_s = time.monotonic() + _VFORK_BEGINS_S
    while time.monotonic() < deadline_s:
        if linux.differ(parent, pid, linux.KCMP_VM) or procfs.cannot_be_stopped(parent):
            return False
        time.sleep(_LOOK_EVERY_S)
    return True


def _apart(pid: int, tid: int) -> Iterator[str]:
    """What the thread has of its own; nothing if it is ending and has lost it already."""
    with suppress(FileNotFoundError, ProcessLookupError):
        if linux.differ(pid, tid, linux.KCMP_FILES) and all(
            os.listdir(f"/proc/{one}/fd") for one in (pid, tid)
        ):
            yield "descriptors"
    with suppress(FileNotFoundError, ProcessLookupError):
        if linux.differ(pid, tid, linux.KCMP_FS) and all(
            os.readlink(f"/proc/{one}/cwd") for one in (pid, tid)
        ):
            yield "a working directory and umask"
