"""Freeing a pod's GPUs and freezing it, and letting it run on."""

from __future__ import annotations

import os

from grit_runtime import log
from grit_runtime.checkpoint import freezing, holds, memory, undoing
from grit_runtime.dump import moved_memory
from grit_runtime.errors import (
    DriverError,
    NotFoundError,
)
from grit_runtime.host import huge_pages, process, procfs, runc
from grit_runtime.model import checkpoint_steps as steps
from grit_runtime.nvidia import driver_calls, suspension, threads
from grit_runtime.pod import running_container
from grit_runtime.startup.named import NamedTuple
from grit_runtime.tasks import memory_copy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.checkpoint.freezing import Frozen
    from grit_runtime.checkpoint.order import Context
    from grit_runtime.config import Config
    from grit_runtime.host.containerd import Pod
    from grit_runtime.host.journal import Journal
    from grit_runtime.model.memory_range import MemoryFile
    from grit_runtime.nvidia.gpu_driver import Driver
    from grit_runtime.pod.running_container import RunningContainer


# Whoever carries a checkpoint away has the cores first, and the source that stays frozen the rest.
_NICENESS = 10


class Suspended(NamedTuple):
    """A frozen pod without its GPUs."""

    survey: suspension.Survey | None  # None on a node without a driver
    saved: list[MemoryFile]  # memory that was taken from its processes
    frozen: Frozen
    thawed: list[str]  # ids of containers, paused by somebody else, that were thawed for the driver
    kept: list[int]  # pids of processes that `grit gpu` had suspended before, and held

    @property
    def gpus(self) -> suspension.Survey | None:
        """The survey, if the driver has taken cards from any process."""
        return self.survey if self.survey and self.survey.all else None


def suspend_gpus(pod: Pod, config: Config) -> int:
    """Free the GPUs of a running pod and leave it so; the device memory freed, in bytes.

    `grit gpu restore` brings them back. On any failure the pod runs as before.
    """
    token = process.new_token()
    tool = runc.installed(config.runc_root, token)
    containers = [running_container.read(tool, c.name, c.id) for c in pod.running]
    held = holds.begin(pod)
    try:
        held.record(steps.Begin(token, config.runc_root))
        with (
            suspension.opened_driver(token) as driver,
            huge_pages.enabled(wanted=config.huge_pages),
        ):
            survey = _survey_running(driver, containers, pod)
            suspension.refuse_unrestorable(survey, containers)
            record_taken(held, survey)
            suspended = suspension.suspend(survey, containers, token, log.Timeline())
            if suspended.holder:
                suspended.holder.close()  # it stays until the GPUs are back
    except BaseException:
        undoing.undo(held)
        raise
    undoing.end(held)
    return survey.size_bytes


def record_taken(held: Journal[steps.Step], survey: suspension.Survey) -> None:
    """Record that the GPUs of a pod's processes are about to be taken."""
    pids = survey.running_pids
    held.record(steps.Gpu(tuple(pids), procfs.all_started_ticks(pids)))


def record_standing(held: Journal[steps.Step], kept: list[int]) -> None:
    """Record that processes which `grit gpu` held are about to be frozen."""
    held.record(steps.Standing(tuple(kept), procfs.all_started_ticks(kept)))


def _survey_running(
    driver: Driver | None, containers: list[RunningContainer], pod: Pod
) -> suspension.Survey:
    survey = suspension.survey(driver, containers) if driver else None
    if survey is None or not survey.running_pids:
        raise NotFoundError(f"pod {pod.namespace}/{pod.name}: no running CUDA process")
    return survey


def suspend(context: Context, survey: suspension.Survey | None, thawed: list[str]) -> Suspended:
    """Take the GPUs from the pod, then freeze it; again if a CUDA process started in between.

    The memory that the driver has staged in the processes is moved to files, so that CRIU does not
    dump it. The processes stand from the lock until they are frozen.
    """
    held = context.journal
    if not (survey and survey.all):
        return Suspended(survey, [], freezing.freeze(context, thawed), thawed, [])
    left: list[str] = []
    kept = survey.kept_pids
    if kept:
        record_standing(held, kept)
    for attempt in range(2):
        record_taken(held, survey)
        prefix = f"{context.memory_dir}/{attempt}"
        saved, frozen = _suspend_once(context, survey, thawed, kept, prefix)
        left = suspension.not_suspended(context.containers)
        suspended = Suspended(survey, saved, frozen, thawed, kept)
        if not left:
            return suspended
        memory.give_back(held, saved)
        _run_on(context, suspended)
        survey = suspension.survey(survey.driver, context.containers)
    raise DriverError(f"the pod keeps taking GPUs while it is suspended: {left[0]}")


def _suspend_once(
    context: Context,
    survey: suspension.Survey,
    thawed: list[str],
    kept: list[int],
    prefix: str,
) -> tuple[list[MemoryFile], Frozen]:
    """The memory that was moved, to files that begin with *prefix*, and what was frozen."""
    token, to_disk = context.tool.token, context.order.after == "stopped"
    copied: dict[memory_copy.Place, bytes] = {}

    def follow(before: suspension.Mappings) -> memory_copy.Follower:
        def look() -> list[MemoryFile]:
            return moved_memory.files(moved_memory.appeared(before), prefix)

        return memory_copy.Follower(look, copied, to_disk=to_disk)

    with huge_pages.enabled(wanted=context.config.huge_pages):
        holder, staged = suspension.suspend(
            survey, context.containers, token, context.timeline, follow
        )
    with threads.until_frozen(holder, kept):
        saved = moved_memory.files(staged, prefix)
        if holder and saved:
            size_bytes = sum(file.size_bytes for file in saved)
            with context.timeline.phase("gpu memory", size_bytes=size_bytes):
                saved = memory_copy.save(saved, to_disk=to_disk, copied=copied)
                memory.empty(context.journal, saved, holder.perform, huge_pages=True)
        frozen = freezing.freeze(context, thawed)
    return saved, frozen


def _run_on(context: Context, suspended: Suspended) -> None:
    """Thaw the pod, and bring its GPUs back before its CUDA processes run."""
    survey = suspended.gpus
    suspension.stand_again(context.tool.token, suspended.kept)
    with suspension.standing(context.tool.token, survey.running_pids if survey else ()):
        with context.timeline.phase("thaw"):
            freezing.thaw(context.tool, suspended.frozen.ids)
        if survey:
            with context.timeline.phase("gpu restore"):
                driver_calls.bring_back(survey.driver, survey.running_pids)


def thaw_for_driver(context: Context) -> list[str]:
    """Thaw CUDA containers that somebody else has paused; they are paused again at the end.

    containerd's clients pause a task before its checkpoint, but the driver needs its threads.
    """
    paused = [c.id for c in context.containers if c.paused and suspension.has_users(c)]
    for container_id in paused:
        context.journal.record(steps.Thaw(container_id))
        runc.resume(context.tool, container_id)
    return paused


def go_on(context: Context, suspended: Suspended) -> None:
    """Let the source run if ordered, except what somebody else had paused.

    Its memory is given back unless it is to end.
    """
    after, timeline = context.order.after, context.timeline
    if suspended.saved and after != "stopped":
        if after == "frozen":
            os.nice(_NICENESS)
        with timeline.phase("gpu memory back"):
            memory.give_back(context.journal, suspended.saved)
    if after != "running":
        return
    _run_on(context, suspended)
    for container_id in suspended.thawed:
        runc.pause(context.tool, container_id)
