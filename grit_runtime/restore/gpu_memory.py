"""Restoring a container's GPU memory in the new pod."""

from __future__ import annotations

from grit_runtime.errors import (
    DriverError,
    ImageError,
    SourceLostError,
)
from grit_runtime.model import restore_steps as steps
from grit_runtime.nvidia import device_nodes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime import log
    from grit_runtime.host.journal import Journal
    from grit_runtime.model.manifest import Container
    from grit_runtime.nvidia import suspension
    from grit_runtime.nvidia.gpu_driver import Driver
    from grit_runtime.restore.attempts import Request
    from grit_runtime.tasks.readback import Restored


def plan(request: Request, container: Container, driver: Driver | None) -> suspension.Placement:
    """As `suspension.plan`, for the new pod."""
    from grit_runtime.nvidia import suspension

    return suspension.plan(driver, container, request.spec, request.order.device_map)


def bring_back(
    restored: Restored,
    request: Request,
    attempt: Journal[steps.Step],
    container: Container,
    placement: suspension.Placement,
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
    suspension.bring_back(placement, container, pids, restored.holder, timeline)
    placement.driver.close()


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
