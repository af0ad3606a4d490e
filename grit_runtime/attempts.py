"""Attempts to restore a container: what is kept of each, and how it is taken back.

An attempt is a directory of its own with a journal. Whoever finds the journal without a living
writer and without the step "restored" undoes it: the pod's next create, the sandbox's delete,
`grit recover`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from grit_runtime import log, volumes
from grit_runtime.host import cgroup, journal, loopback, network, overlay, process, records, runc
from grit_runtime.host.runc import Runc
from grit_runtime.model import lifecycle
from grit_runtime.model.lifecycle import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.host.journal import Journal

JOURNAL = "attempt.journal"

_EVENTS = {
    lifecycle.FAILED: "restore failed",
    lifecycle.COLD: "starting cold",
    lifecycle.SKIPPED: "skipping what had exited 0",
}


def claim_start(attempt_dir: str) -> bool:
    """Whether `start` of this container is already done, by its restore; true once.

    A start says that `create` was heard to succeed, so it is here that the restore becomes a fact:
    from now on this pod does not restore this container from this checkpoint again.
    """
    held = journal.adopt(f"{attempt_dir}/{JOURNAL}")
    if held is None:
        return False
    steps = {step["step"]: step for step in held.steps()}
    claimed = "restored" in steps and "started" not in steps
    if claimed:
        _keep(Outcome(**steps["restored"]["outcome"]))
        held.record("started")
    held.close()
    return claimed


def sweep(pod_dir: str, *, starting: str | None = None) -> None:
    """Undo the pod's attempts whose writer has died before the container was restored.

    *starting* is the container about to be created again: an attempt of it that was restored and
    never started is one whose success nobody heard of.
    """
    for path in journal.beneath(pod_dir, f"*/{JOURNAL}"):
        held = journal.adopt(path)
        if held is None:
            continue
        steps = {step["step"]: step for step in held.steps()}
        if "restored" in steps and (
            "started" in steps or steps["begin"]["outcome"]["container"] != starting
        ):
            held.close()
        else:
            _undo_dead(held)


def forget(attempt_dir: str) -> None:
    """The container is being deleted: drop what is kept of its restore, undo a dead attempt."""
    held = journal.adopt(f"{attempt_dir}/{JOURNAL}")
    if held is None:
        return
    if any(step["step"] == "started" for step in held.steps()):
        _end(held)
    else:
        _undo_dead(held)


def forget_pod(pod_dir: str) -> None:
    """The sandbox is being deleted: as `forget`, for all containers of its pod."""
    loopback.let_go(pod_dir)
    for path in journal.beneath(pod_dir, f"*/{JOURNAL}"):
        forget(os.path.dirname(path))
    volumes.forget(pod_dir)


def recover() -> None:
    """Undo the dead attempts of every pod."""
    for pod_dir in journal.beneath(journal.PODS_DIR, "*"):
        sweep(pod_dir)
        loopback.recover(pod_dir)


def undo(attempt: Journal) -> None:
    """Leave nothing of the attempt: no process, container, cgroup, mount, log or file."""
    for step in reversed(attempt.steps()):
        match step["step"]:
            case "gpu":
                from grit_runtime import gpu  # noqa: PLC0415

                gpu.suspend_to_kill(step["token"], step["pids"])
            case "restore":
                _kill(step)
            case "mount":
                with suppress(OSError):  # it may have died before it mounted
                    overlay.unmount(step["path"])
            case "log":
                _empty_log(step["path"], int(step["size_bytes"]))
            case "volumes":
                volumes.let_go(step["pod_dir"], step["container_id"])
            case "addresses":
                network.remove_from_loopback(step["path"], step["addresses"])
            case "copy":
                remove(step["path"])
            case _:
                pass  # nothing to take back
    _end(attempt)


def _undo_dead(held: Journal) -> None:
    log.warning("undoing an attempt that died", journal=held.path)
    steps = held.steps()
    undo(held)
    for begin in steps[:1]:  # none if it died before it had written anything
        reason = "grit-runtime was killed before the container was started"
        tell(Outcome(**begin["outcome"])._replace(time=log.rfc3339(), reason=reason))


def _empty_log(path: str, size_bytes: int) -> None:
    """Empty the log again, unless more than what we carried has come into it."""
    with suppress(FileNotFoundError):
        if os.path.getsize(path) == size_bytes:
            os.truncate(path, 0)


def _kill(step: dict[str, Any]) -> None:
    """End what a `runc restore` has begun, whoever of runc, CRIU and the tasks still lives."""
    tool = Runc(step["program"], tuple(step["global_options"]), step["token"])
    process.wait_gone(tool.token, deadline_s=0)
    if step["cgroups_path"]:
        cgroup.kill(step["cgroups_path"])
    runc.delete(tool, step["container_id"])


def tell(outcome: Outcome) -> None:
    """Log what became of the container, other than a restore, and keep it."""
    write = log.error if outcome.outcome == lifecycle.FAILED else log.warning
    write(_EVENTS[outcome.outcome], container_id=outcome.container_id, reason=outcome.reason)
    _keep(outcome)


def _keep(outcome: Outcome) -> None:
    if outcome.pod_uid:  # by hand there is no pod to remember
        records.append(outcome)


def remove(directory: str) -> None:
    if os.path.isdir(directory):
        import shutil  # noqa: PLC0415  brings all compressors, and is seldom needed

        shutil.rmtree(directory)


def _end(held: Journal) -> None:
    remove(os.path.dirname(held.path))
    held.close()
    with suppress(OSError):  # the pod has other attempts
        os.rmdir(os.path.dirname(os.path.dirname(held.path)))
