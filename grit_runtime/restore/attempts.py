"""Attempts to restore a container: what is kept of each, and how it is taken back.

An attempt is a directory of its own with a journal. Whoever finds the journal without a living
writer and without the step "restored" undoes it: the pod's next create, the sandbox's delete,
`grit recover`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from grit_runtime import log, paths
from grit_runtime.errors import INTERRUPTED, GritError
from grit_runtime.host import cgroup, huge_pages, journal, overlay, process, records, runc
from grit_runtime.host.runc import Runc
from grit_runtime.model import outcomes
from grit_runtime.model.restore_steps import (
    STEPS,
    Addresses,
    Begin,
    Claim,
    Copy,
    Gpu,
    Log,
    Mount,
    Restore,
    Restored,
    RwLayer,
    Started,
    Volumes,
)
from grit_runtime.model.steps import has, last
from grit_runtime.pod import held_pods, lives, loopback, network
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.host.journal import Journal
    from grit_runtime.model.annotations import RestoreOrder
    from grit_runtime.model.outcomes import Outcome
    from grit_runtime.model.restore_steps import Step

_COPIES_DIR = f"{paths.STATE_DIR}/copies"

JOURNAL = lives.ATTEMPT_JOURNAL

_EVENTS = {
    outcomes.FAILED: "restore failed",
    outcomes.COLD: "starting cold",
    outcomes.SKIPPED: "skipping what had exited 0",
}


class Request(NamedTuple):
    """One `create` call that is to become a `restore`."""

    container_id: str
    bundle_dir: str
    spec: dict[str, Any]  # the bundle's config.json
    runc: Runc
    flags: tuple[str, ...]  # the flags of `create` that `restore` has too
    order: RestoreOrder
    checkpoint_root: str
    trusted_keys: str
    huge_pages: bool
    criu: str  # its path, "" for the one on PATH
    restore_wait_s: float
    arriving: str = ""  # the directory beside the checkpoint's place that has all but its memory

    @property
    def checkpoint_path(self) -> str:
        return "/".join((self.checkpoint_root, *self.order.path))

    @property
    def pod_dir(self) -> str:
        identity = self.order.identity
        sandbox_id = identity.sandbox_id if identity else self.container_id
        return f"{journal.PODS_DIR}/{sandbox_id}"

    @property
    def attempt_dir(self) -> str:
        return f"{self.pod_dir}/{self.container_id}"

    @property
    def copy_dir(self) -> str:
        return f"{_COPIES_DIR}/{self.runc.token}"

    @property
    def log_dir(self) -> str:
        identity = self.order.identity
        if identity is None:
            return f"{paths.LOG_DIR}/{self.container_id}"
        return f"{paths.LOG_DIR}/{identity.namespace}/{identity.pod}/{identity.container}"

    @property
    def name(self) -> str:
        """The container's name in its pod."""
        identity = self.order.identity
        return identity.container if identity else self.container_id


def claim_start(attempt_dir: str) -> bool:
    """Whether the restore has already started this container; true once.

    A `start` shows that the caller has seen `create` succeed, so the restore becomes final here:
    from now on this pod does not restore this container from this checkpoint again.
    """
    held = _adopt(f"{attempt_dir}/{JOURNAL}")
    if held is None:
        return False
    steps = held.steps()
    restored = None if has(steps, Started) else last(steps, Restored)
    if restored:
        _keep(restored.outcome)
        held.record(Started())
    held.close()
    return restored is not None


def sweep(pod_dir: str, *, starting: str | None = None) -> None:
    """Undo the pod's attempts whose writer has died before the container was restored.

    *starting* is the container about to be created again: if its last attempt was restored and
    never started, the caller has not seen that succeed, and it is undone too.
    """
    for path in journal.beneath(pod_dir, f"*/{JOURNAL}"):
        if _is_settled(_read(path), starting):
            continue
        held = journal.adopt(path, STEPS)
        if held is None:
            continue
        if _is_settled(held.steps(), starting):
            held.close()
        else:
            _undo_dead(held)


def _is_settled(steps: list[Step], starting: str | None) -> bool:
    restored = last(steps, Restored)
    if restored is None:
        return False
    return has(steps, Started) or restored.outcome.container != starting


def _adopt(path: str) -> Journal[Step] | None:
    """The journal of an attempt whose writer is dead, or has restored the container.

    Then a sweep may lock it still, for a moment.
    """
    return journal.adopt(path, STEPS, wait=has(_read(path), Restored))


def _read(path: str) -> list[Step]:
    try:
        return journal.read(path, STEPS)
    except FileNotFoundError:  # it has just ended
        return []


def forget(attempt_dir: str) -> None:
    """Drop the attempt of a container that is being deleted; undo it if it has died."""
    held = _adopt(f"{attempt_dir}/{JOURNAL}")
    if held is None:
        return
    if has(held.steps(), Started):
        _end(held)
    else:
        _undo_dead(held)


def forget_pod(pod_dir: str) -> None:
    """As `forget`, for all containers of a pod whose sandbox is being deleted."""
    from grit_runtime.pod import volumes  # a restore seldom has any

    loopback.release(pod_dir)
    for path in journal.beneath(pod_dir, f"*/{JOURNAL}"):
        forget(os.path.dirname(path))
    volumes.forget(pod_dir)
    with suppress(OSError):  # a checkpoint may hold the pod
        os.rmdir(pod_dir)


def recover() -> list[GritError | OSError]:
    """Undo the dead attempts of every pod. What fails is logged and returned; the others go on."""
    failed: list[GritError | OSError] = []
    for pod_dir in journal.beneath(journal.PODS_DIR, "*"):
        try:
            sweep(pod_dir)
            loopback.recover(pod_dir)
        except (GritError, OSError) as error:
            log.error(
                "attempts to restore a pod could not be undone", pod_dir=pod_dir, reason=error
            )
            failed.append(error)
    return failed


def undo(attempt: Journal[Step]) -> None:
    """Leave nothing of the attempt: no process, container, cgroup, mount, log or file."""
    for step in reversed(attempt.steps()):
        _undo_step(step)
    _end(attempt)


def _undo_step(step: Step) -> None:
    match step:
        case Gpu(pids, token):
            from grit_runtime.nvidia import suspension

            suspension.suspend_to_kill(token, pids)
        case Restore():
            _kill(step)
        case Mount(path):
            with suppress(OSError):  # the attempt may have died before it mounted
                overlay.unmount(path)
        case Log(path, size_bytes):
            _empty_log(path, size_bytes)
        case Volumes(pod_dir, container_id):
            from grit_runtime.pod import volumes

            volumes.release(pod_dir, container_id)
        case Addresses(path, addresses):
            network.remove_from_loopback(path, addresses)
        case Copy(path):
            remove(path)
        case Begin() | Claim() | RwLayer() | Restored() | Started():
            pass  # nothing to take back; containerd empties the root filesystem


def _undo_dead(held: Journal[Step]) -> None:
    begin = last(held.steps(), Begin)
    with log.about(**(outcomes.whose(begin.outcome) if begin else {})):
        log.warning("undoing an attempt that died", journal=held.path)
        undo(held)
    huge_pages.recover()
    if begin:  # the attempt may have died before it had written anything
        reason = "grit-runtime was killed before the container was started"
        report(begin.outcome._replace(time=log.rfc3339(), reason=reason, error=INTERRUPTED))


def _empty_log(path: str, size_bytes: int) -> None:
    """Empty the log again, unless more was written to it than what was carried over."""
    with suppress(FileNotFoundError):
        if os.path.getsize(path) == size_bytes:
            os.truncate(path, 0)


def _kill(step: Restore) -> None:
    """End what a `runc restore` has begun: runc, CRIU and the tasks, as far as they still live."""
    from grit_runtime.host import mounts

    tool = Runc(step.program, step.global_options, step.token)
    process.wait_gone(tool.token, deadline_s=0, criu_dir=step.work_dir or "")
    if step.cgroups_path:
        cgroup.kill(step.cgroups_path)
    # A killed CRIU leaves the cgroup hierarchies mounted in its work directory, and a killed runc
    # the root filesystem in its state directory: deleting that would empty the filesystem.
    mounts.unmount_below(f"{tool.root}/{step.container_id}")
    if step.work_dir:
        mounts.unmount_below(step.work_dir)
        for path in journal.beneath(step.work_dir, ".criu.*"):
            with suppress(OSError):
                os.rmdir(path)
    runc.delete(tool, step.container_id)


def report(outcome: Outcome) -> None:
    """Log and record what became of a container that was not restored."""
    write = log.error if outcome.outcome == outcomes.FAILED else log.warning
    with log.about(**outcomes.whose(outcome)):
        write(_EVENTS[outcome.outcome], reason=outcome.reason)
    _keep(outcome)


def _keep(outcome: Outcome) -> None:
    if not outcome.pod_uid:  # runc was called by hand: there is no pod
        return
    records.append(outcome)
    if outcome.outcome == outcomes.RESTORED:
        held_pods.restored(outcome.pod_uid, outcome.container)


def remove(directory: str) -> None:
    if os.path.isdir(directory):
        import shutil  # brings all compressors, and is seldom needed

        shutil.rmtree(directory)


def _end(held: Journal[Step]) -> None:
    remove(os.path.dirname(held.path))
    held.close()
    with suppress(OSError):  # the pod has other attempts
        os.rmdir(os.path.dirname(os.path.dirname(held.path)))
