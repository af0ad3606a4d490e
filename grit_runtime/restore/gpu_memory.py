"""Restoring a container's GPU memory in the new pod."""

from __future__ import annotations

from grit_runtime.errors import (
    DriverError,
    ImageError,
    SourceLostError,
)
from grit_runtime.files import checkpoint_dir, confine
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import restore_steps as steps
from grit_runtime.nvidia import device_nodes
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from grit_runtime import log
    from grit_runtime.host.journal import Journal
    from grit_runtime.model.dump import Dump
    from grit_runtime.model.manifest import Container, File, Manifest
    from grit_runtime.model.memory_range import MemoryFile
    from grit_runtime.nvidia import suspension
    from grit_runtime.nvidia.gpu_driver import Driver
    from grit_runtime.restore.attempts import Request
    from grit_runtime.tasks.readback import Restored


class Gpus(NamedTuple):
    """Where a container's GPU memory comes from, and where it goes."""

    placement: suspension.Placement
    saved: dict[File, MemoryFile]  # memory that grit fills in itself; pids are the dump's
    left_out: dict[str, bytes]  # images that make CRIU leave that memory out


def plan(
    request: Request,
    manifest: Manifest,
    container: Container,
    driver: Driver | None,
    checkpoint_fd: int,
    dump: Dump,
) -> Gpus:
    """Decide how the container's GPU memory comes back in the new pod."""
    from grit_runtime.dump import staged_memory
    from grit_runtime.nvidia import suspension

    placement = suspension.plan(driver, container, request.spec, request.order.device_map)
    images_path = (container.name, "checkpoint")
    with closing_fd(confine.descend(checkpoint_fd, images_path)) as images_fd:
        staged = staged_memory.in_dump(images_fd, dump)
        left_out = staged_memory.left_out(images_fd, staged.values())
    memory = checkpoint_dir.gpu_memory(manifest, container)
    saved = {memory.pop("/".join((*images_path, name))): file for name, file in staged.items()}
    # CRIU restores the rest, if anybody does, so its digests are compared now.
    checkpoint_dir.refuse(
        request.checkpoint_path, checkpoint_dir.corrupt_files(checkpoint_fd, memory.values())
    )
    return Gpus(placement, saved, left_out)


def bring_back(
    restored: Restored,
    request: Request,
    attempt: Journal[steps.Step],
    container: Container,
    gpus: Gpus,
    timeline: log.Timeline,
) -> None:
    """Give the restored processes, which stand, the cards of the new pod and their memory back."""
    from grit_runtime.nvidia import suspension

    device_nodes.replace_nvidia_nodes(restored.init_pid, request.spec)
    gone = [str(process.pid) for process in container.cuda if process.pid not in restored.pids]
    if gone:
        raise ImageError(f"CUDA process {', '.join(gone)} of the manifest did not come back")
    pids = [restored.pids[process.pid] for process in container.cuda]
    attempt.record(steps.Gpu(tuple(pids), request.runc.token))
    suspension.bring_back(gpus.placement, container, pids, restored.holder, timeline)
    gpus.placement.driver.close()


def fill(
    request: Request, saved: dict[File, MemoryFile], pids: Mapping[int, int], timeline: log.Timeline
) -> None:
    """Fill in the memory that CRIU has left out of stopped tasks.

    *pids* maps the dump's pids to the node's.
    """
    from grit_runtime.tasks import memory_copy

    with timeline.phase("gpu memory", size_bytes=sum(file.size_bytes for file in saved)):
        here = [file._replace(pid=pids[file.pid]) for file in saved.values()]
        digests = memory_copy.fill_and_hash(here)
    checkpoint_dir.refuse(request.checkpoint_path, checkpoint_dir.digest_mismatches(saved, digests))


def resume_foreign(restored: Restored, request: Request, attempt: Journal[steps.Step]) -> None:
    """Bring back the CUDA processes that another program had suspended, onto the cards they had."""
    from grit_runtime.nvidia import gpu_driver, suspension

    pids = gpu_driver.cuda_pids(restored.pids.values())
    if not pids:
        return
    attempt.record(steps.Gpu(tuple(pids), request.runc.token))
    device_nodes.replace_nvidia_nodes(restored.init_pid, request.spec)
    try:
        suspension.bring_back_standing(request.runc.token, pids, restored.holder)
    except SourceLostError as error:
        raise DriverError(f"GPU memory of container {request.name}: {error}") from error
