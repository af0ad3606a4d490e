"""runc's own `checkpoint` and `restore` of a container with GPU memory, without a manifest.

For those who call runc themselves, containerd's task API among them: the caller's flags and paths
stay as they are, the driver's part is added around them.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from grit_runtime import gpu, holds, log
from grit_runtime.errors import CommandError
from grit_runtime.host import cgroup, devices, journal, process, runc
from grit_runtime.host import gpu as host_gpu
from grit_runtime.host.cuda import CHECKPOINTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.host.journal import Journal
    from grit_runtime.host.runc import Runc


class Call(NamedTuple):
    """The caller's command line, and the container that it means."""

    argv: list[str]
    container_id: str
    runc: Runc
    spec: dict[str, Any]


def checkpoint(call: Call, *, leave_running: bool) -> int | None:
    """runc's exit status, or None if the container has no CUDA process: then runc is enough.

    A container that the caller has paused is thawed for the driver, which needs its threads, and
    paused again for the dump and afterwards.
    """
    state = runc.state(call.runc, call.container_id)
    paused = state.status == "paused"
    container = gpu.Container("", call.container_id, state.pid, paused, state.bundle_dir, call.spec)
    if not container.has_users():
        return None
    pod_dir = f"{journal.PODS_DIR}/{call.container_id}"
    held = journal.begin(f"{pod_dir}/{holds.JOURNAL}")
    try:
        held.record("begin", token=call.runc.token, runc_root=_root(call.runc))
        status = _suspended(call, container, held)
    except BaseException:
        holds.undo(held)
        raise
    if status == 0 and not leave_running:
        held.end()
        os.rmdir(pod_dir)
    else:
        holds.undo(held)
    return status


def restore(call: Call) -> int:
    """runc's exit status; if it is 0, the container's GPU memory is back and verified running."""
    status = _run(call)
    if status != 0:
        return status
    init_pid = runc.state(call.runc, call.container_id).pid
    pids = host_gpu.users(cgroup.pids(cgroup.of(init_pid)))
    driver = host_gpu.find_driver(call.runc.token)
    if not pids or driver is None:
        return status
    suspended = [
        pid for pid, answer in host_gpu.states(driver, pids).items() if answer == (0, CHECKPOINTED)
    ]
    try:
        devices.equalize(init_pid, call.spec)
        gpu.revive(driver, suspended)
    except BaseException as error:
        gpu.suspend_to_kill(call.runc.token, suspended)
        runc.delete(call.runc, call.container_id)
        raise CommandError(f"container {call.container_id}: {error}") from error
    return status


def _suspended(call: Call, container: gpu.Container, held: Journal) -> int:
    """Run the caller's command while the container's GPU memory is in its own."""
    if container.paused:
        held.record("thaw", container=call.container_id)
        runc.resume(call.runc, call.container_id)
    with gpu.opened_driver(call.runc.token) as driver:
        found = gpu.survey(driver, [container]) if driver else None
        if found and found.running_pids:
            gpu.refuse_unrestorable(found, [container])
            held.record("gpu", pids=found.running_pids)
            gpu.suspend(found, log.Timeline())
    if container.paused:
        held.record("freeze", container=call.container_id)
        runc.pause(call.runc, call.container_id)
    return _run(call)


def _run(call: Call) -> int:
    return process.run_attached([call.runc.program, *call.argv[1:]], token=call.runc.token)


def _root(tool: Runc) -> str:
    roots = [option for option in tool.global_options if option.startswith("--root=")]
    return roots[0].removeprefix("--root=") if roots else "/run/runc"
