"""Running `runc restore` to its end, even where the CRIU that it runs is killed.

CRIU's tasks are its siblings or have left its process group, and have the socket open that runc
reads from: if only CRIU is killed, as by the OOM killer, runc waits for ever.
"""

from __future__ import annotations

import os
import select
import signal

from grit_runtime.host import cgroup, criu, process, procfs, runc
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_LOOK_EVERY_MS = 200


class Ended(NamedTuple):
    """Exit status of runc, as of `process.wait`, and the signal that ended CRIU, 0 if none did."""

    status: int
    criu_signal: int


def run(
    argv: list[str], *, token: str, cgroups_path: str, meanwhile: Callable[[], object]
) -> Ended:
    """Run *argv* with this process's standard streams; the tasks are in the cgroup *cgroups_path*.

    *meanwhile* is called once while it runs.
    """
    pid = process.spawn(argv, token=token)
    try:
        meanwhile()
        return _wait(pid, token, cgroups_path)
    except BaseException:
        process.kill(pid)
        raise


def reason(ended: Ended, criu_log: str, runc_log: str) -> str:
    """Why the restore failed."""
    if ended.status < 0:
        return f"runc was killed by {signal.Signals(-ended.status).name}"
    if ended.criu_signal and not criu.has_given_up(criu_log):
        return f"CRIU was killed by {signal.Signals(ended.criu_signal).name}"
    error = runc.last_error(runc_log) or f"exit {ended.status}"
    if error.endswith(runc.CUT_OFF):
        return "CRIU was killed by a signal, SIGKILL if by the OOM killer: see dmesg"
    return criu.decisive_line(criu_log) or error


def _wait(pid: int, token: str, cgroups_path: str) -> Ended:
    killed_by = 0
    with open(os.pidfd_open(pid), "rb") as ended:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        while not poll.poll(_LOOK_EVERY_MS):
            killed_by = killed_by or _killed_child(pid)
            if killed_by:
                for task in {*process.carrying(token), *cgroup.pids(cgroups_path)} - {pid}:
                    process.kill_and_wait(task)
    return Ended(process.wait(pid), killed_by)


def _killed_child(pid: int) -> int:
    """The signal that has killed a child which *pid* has not waited for; 0 if there is none."""
    for child in procfs.children(pid):
        number = procfs.killed_by(child)
        if number:
            return number
    return 0
