"""Bringing back one container of a checkpoint whose files match its manifest.

The dump is checked against the live pod, adapted to it, and restored by `runc restore`; the tasks
run once they were found to be what was dumped.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache

from grit_runtime.dump import images
from grit_runtime.errors import (
    PodStateError,
    RestoreError,
    StrictError,
)
from grit_runtime.host import (
    cgroup,
    criu,
    huge_pages,
    namespaces,
    overlay,
    runc_restore,
)
from grit_runtime.host import node as this_node
from grit_runtime.model import manifest as manifests
from grit_runtime.model import (
    privilege,
)
from grit_runtime.model import restore_steps as steps
from grit_runtime.restore import adapting, checks, files, gpu_memory, memory
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from grit_runtime import log
    from grit_runtime.files.checkpoint_dir import Checkpoint
    from grit_runtime.host.journal import Journal
    from grit_runtime.host.process import Child
    from grit_runtime.model.dump import Dump
    from grit_runtime.model.live_pod import LivePod
    from grit_runtime.model.manifest import Container, File, Manifest
    from grit_runtime.model.memory_range import MemoryFile
    from grit_runtime.model.restored_check import Images
    from grit_runtime.nvidia import suspension
    from grit_runtime.nvidia.gpu_driver import Driver
    from grit_runtime.restore.attempts import Request
    from grit_runtime.restore.checks import Case
    from grit_runtime.tasks.readback import Restored

_FACTS_UNKNOWN = (
    "whoever took the checkpoint has not kept what no image of CRIU holds: processor affinity, I/O "
    "priority, owners of pipes, options of sockets and the like are as for a new process"
)


class Verified(NamedTuple):
    """A container of a verified checkpoint, and what was asked for while it was verified."""

    checkpoint_fd: int
    sealed: Checkpoint
    container: Container
    pod: namespaces.PodNamespaces
    criu_version: Child
    driver: Driver | None


class Ready(NamedTuple):
    """A container of a checkpoint that has passed all checks, adapted to the new pod."""

    container: Container
    images_fd: int
    dump: Dump
    live: LivePod
    placement: suspension.Placement | None  # of its GPUs, if it had any
    moved: dict[File, MemoryFile]  # memory that CRIU has not dumped
    images_dir: str  # the images as CRIU is to see them


def bring_back(
    request: Request, attempt: Journal[steps.Step], verified: Verified, timeline: log.Timeline
) -> tuple[str, ...]:
    """Run the container in the new pod; warnings of what came back different.

    GritError or OSError if that fails; the caller undoes what the journal says.
    """
    checkpoint_fd, sealed, container, pod, criu_version, driver = verified
    with timeline.phase("check"):
        held = checks.case(
            request.checkpoint_path,
            checkpoint_fd,
            container,
            [c.name for c in sealed.manifest.running],
            request.bundle_dir,
            request.spec,
        )
        dump, live, images_fd = held.dump, held.live, held.images_fd
        place_gpus = cache(lambda: gpu_memory.plan(request, container, driver))
        here = checks.Here(
            node=this_node.facts(criu.read_version(criu_version)),
            taken_on=sealed.manifest.node if sealed.is_verifiable else None,
            tcp=request.order.tcp,
            taking_over=frozenset(),
            place_gpus=place_gpus,
        )
        rewritten = checks.check(held)
        checks.check_here(held, here)
        moved = memory.find(request, sealed, container, checkpoint_fd, dump, timeline)
        rewritten |= memory.left_out(images_fd, moved)
        placement = place_gpus() if container.cuda else None
    with timeline.phase("rw layer"):
        files.apply_rw_layer(request, attempt, checkpoint_fd, container.name)
    files.put_back_volumes(request, attempt, checkpoint_fd, sealed.manifest, timeline)
    checks.check_files(held)
    with timeline.phase("prepare"):
        rewritten |= adapting.adapt_namespaces(request.spec, pod, images_fd, dump)
        rewritten |= adapting.without_lock(request, images_fd, dump)
        images_dir = _prepare_criu(request, attempt, held, rewritten)
    files.carry_log(request.order.identity, checkpoint_fd, container.name, attempt)
    seen = images.with_rewritten(dump, rewritten)
    ready = Ready(container, images_fd, seen, live, placement, moved, images_dir)
    warnings = _bring_back(request, attempt, sealed, ready, timeline)
    overlay.unmount(images_dir)
    return warnings


def _prepare_criu(
    request: Request,
    attempt: Journal[steps.Step],
    held: Case,
    rewritten: dict[str, bytes | None],
) -> str:
    """Configure CRIU, and mount the images as it is to see them; the mountpoint."""
    adapting.configure_criu(
        request,
        [
            *adapting.place_sockets(request, attempt, held),
            *adapting.own_cgroup(request, held.dump, held.live),
            "leave-stopped",  # until the tasks have been read back
        ],
    )
    return adapting.mount_images(request, attempt, held.images_fd, rewritten)


def _bring_back(
    request: Request,
    attempt: Journal[steps.Step],
    sealed: Checkpoint,
    ready: Ready,
    timeline: log.Timeline,
) -> tuple[str, ...]:
    """Have runc restore the tasks, and let them run if they are what was dumped.

    Returns warnings of what came back different.
    """
    placement = ready.placement

    @cache
    def read_while_runc_works() -> Images:
        from grit_runtime.dump import readback_images
        from grit_runtime.tasks import readback  # noqa: F401  takes a while

        return readback_images.read(ready.images_fd, ready.dump)

    with huge_pages.enabled(wanted=placement is not None and request.huge_pages):
        with timeline.phase("restore"):
            init_pid = _runc_restore(
                request, attempt, sealed.manifest, ready.images_dir, meanwhile=read_while_runc_works
            )
        from grit_runtime.tasks import readback

        with readback.held(init_pid) as restored:
            with timeline.phase("read back"):
                more = read_while_runc_works()
                readback.check(restored, more, ready.dump, ready.live)
                warnings = _mend(request, sealed, ready, restored, more)
            if ready.moved:
                memory.fill(request, ready.moved, restored.pids, timeline)
            if placement:
                gpu_memory.bring_back(
                    restored, request, attempt, ready.container, placement, timeline
                )
            if not sealed.is_verifiable:
                gpu_memory.resume_foreign(restored, request, attempt)
            readback.go_on(restored, ready.dump)
    return warnings


def _mend(
    request: Request, sealed: Checkpoint, ready: Ready, restored: Restored, more: Images
) -> tuple[str, ...]:
    """Give the tasks what no image holds; what of it could not be given."""
    from grit_runtime.tasks import readback

    if sealed.manifest.version < manifests.WITH_FACTS or not sealed.is_verifiable:
        readback.give_streams(restored, request.spec)
        return (_FACTS_UNKNOWN,)
    lost = readback.mend(restored, ready.container.facts, ready.dump, more)
    if lost and request.order.strict:
        raise StrictError(f"strict, and not all came back as it was: {'; '.join(lost)}")
    return lost


def _runc_restore(
    request: Request,
    attempt: Journal[steps.Step],
    manifest: Manifest,
    images_dir: str,
    *,
    meanwhile: Callable[[], object],
) -> int:
    """`runc restore --detach` with the caller's standard streams, which become the container's.

    Returns the pid of the container's first task; all tasks are stopped. *meanwhile* is called once
    while runc works.
    """
    cgroups_path = request.spec["linux"].get("cgroupsPath", "")
    if cgroups_path and cgroup.pids(cgroups_path):
        # A failed attempt kills everything in the container's cgroup.
        raise PodStateError(f"cgroup {cgroups_path} already holds processes")
    restore_log = f"{request.log_dir}/restore.log"
    runc_log = f"{request.log_dir}/runc.log"
    for stale in (restore_log, runc_log):
        with suppress(FileNotFoundError):
            os.unlink(stale)
    flags = _flags(request, manifest, images_dir)
    tool = request.runc
    attempt.record(
        steps.Restore(
            token=tool.token,
            program=tool.program,
            global_options=tool.global_options,
            container_id=request.container_id,
            cgroups_path=cgroups_path,
            work_dir=request.log_dir,
        )
    )
    logged = tool._replace(
        global_options=(*tool.global_options, "--log", runc_log, "--log-format", "json")
    )
    argv = logged.argv("restore", *flags, request.container_id)
    ended = runc_restore.run(argv, token=tool.token, cgroups_path=cgroups_path, meanwhile=meanwhile)
    if ended.status != 0:
        reason = runc_restore.reason(ended, restore_log, runc_log)
        raise RestoreError(
            f"restore of container {request.container_id} from {request.checkpoint_path} failed: "
            f"{reason}; see {restore_log}"
        )
    # A later dump of this container reads the same file, and would take the paths for the names.
    os.truncate(adapting.criu_config_path(request), 0)
    with open(flags[flags.index("--pid-file") + 1], encoding="ascii") as file:
        return int(file.read())


def _flags(request: Request, manifest: Manifest, images_dir: str) -> list[str]:
    """The flags of `runc restore`, always with --pid-file."""
    flags = ["--detach", "--bundle", request.bundle_dir, *request.flags]
    if "--pid-file" not in flags:
        flags += ["--pid-file", f"{request.attempt_dir}/pid"]
    flags += ["--image-path", images_dir, "--work-path", request.log_dir]
    if manifest.options.file_locks:
        flags.append("--file-locks")
    lsm = privilege.lsm_profile(request.spec)
    return [*flags, "--lsm-profile", lsm] if lsm else flags
