"""Finding why a pod's CUDA processes could not be restored, before they are touched. Pure.

A CUDA checkpoint can succeed and yet be impossible to restore, even in place. Known cases are
refused first, each with its remedy.
"""

from __future__ import annotations

import re

from grit_runtime.model.process_preflight import traced
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Measured: with these two (and shared memory or sockets as transport) a job of several ranks comes
# back; with either missing the restore fails with 801, 1 or 999 and the ranks are lost.
SAFE_NCCL = {"NCCL_P2P_DISABLE": "1", "NCCL_CUMEM_ENABLE": "0"}

# Drivers whose checkpoint calls were seen to kill processes that were sound, and where.
_DEADLY_DRIVERS = {
    "610.57.04": "its lock kills processes of many threads (NVIDIA/cuda-checkpoint#58)",
}

_DRIVER_FILE = re.compile(r".*/(?:lib(?:cuda|nvidia|nv)[^/]*\.so[^/]*|nvidia-[^/]+)$")


class ProcessFacts(NamedTuple):
    """A CUDA process as /proc and the driver show it."""

    pid: int
    container: str
    environ: dict[str, str]
    maps_nccl: bool
    devices: int
    tracer_pid: int
    talks_to_mps: bool


class ContainerFacts(NamedTuple):
    """A container with CUDA processes. *foreign_mounts* are in it but not in its config.json."""

    name: str
    assumes_nccl_safe: bool
    foreign_mounts: tuple[str, ...]
    mig_cards: tuple[str, ...]
    needed_bytes: int
    limit_left_bytes: int | None  # None: no limit


def refusals(
    containers: Sequence[ContainerFacts],
    processes: Sequence[ProcessFacts],
    *,
    host_left_bytes: int,
) -> list[str]:
    """One line for each reason, with what to do; empty when the checkpoint can be taken."""
    reasons = []
    needed_bytes = sum(container.needed_bytes for container in containers)
    if needed_bytes > host_left_bytes:
        reasons.append(
            f"the device memory ({_gib(needed_bytes)}) does not fit into the host's free memory "
            f"({_gib(host_left_bytes)}); free some, or use a node with more"
        )
    for container in containers:
        reasons += _container_refusals(container)
    several = len(processes) > 1
    safe = {container.name for container in containers if container.assumes_nccl_safe}
    for process in processes:
        reasons += _process_refusals(process)
        if process.container not in safe:
            reasons += _nccl_refusals(process, several=several)
    return reasons


def deadly(version: str) -> str:
    """Why nothing must be checkpointed with this version of the driver; "" if it may."""
    if why := _DEADLY_DRIVERS.get(version):
        return f"NVIDIA driver {version} is not asked for a checkpoint: {why}; install another"
    return ""


def driver_mounts(mountpoints: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Mounts of driver files and devices among *mountpoints* that config.json does not order."""
    ordered = set(known)
    found = [
        path
        for path in mountpoints
        if path not in ordered and (_DRIVER_FILE.match(path) or path.startswith("/dev/nvidia"))
    ]
    return tuple(found)


def _container_refusals(container: ContainerFacts) -> list[str]:
    reasons = []
    if container.mig_cards:
        reasons.append(
            f"container {container.name}: GPU {container.mig_cards[0]} is in MIG mode, which the "
            "driver cannot checkpoint; use whole GPUs"
        )
    if container.foreign_mounts:
        reasons.append(
            f"container {container.name}: {container.foreign_mounts[0]} was mounted by NVIDIA's "
            'legacy hook, which no restore repeats; set mode = "cdi" in '
            "/etc/nvidia-container-runtime/config.toml and recreate the pod"
        )
    limit = container.limit_left_bytes
    if limit is not None and container.needed_bytes > limit:
        reasons.append(
            f"container {container.name}: its device memory ({_gib(container.needed_bytes)}) must "
            f"fit into its own memory for a while, and its limit leaves {_gib(limit)}; raise "
            "resources.limits.memory"
        )
    return reasons


def _process_refusals(process: ProcessFacts) -> list[str]:
    reasons = []
    where = f"process {process.pid} in container {process.container}"
    if process.talks_to_mps:
        reasons.append(f"{where} uses MPS, which the driver cannot checkpoint; run it without MPS")
    return reasons + traced(where, process.tracer_pid)


def _nccl_refusals(process: ProcessFacts, *, several: bool) -> list[str]:
    if not process.maps_nccl or not (several or process.devices > 1):
        return []
    missing = [f"{k}={v}" for k, v in SAFE_NCCL.items() if process.environ.get(k) != v]
    if not missing:
        return []
    reason = (
        f"process {process.pid} in container {process.container} uses NCCL without "
        f"{' '.join(missing)}: its checkpoint would succeed and never be restored; recreate the "
        "pod with grit.dev/nccl: checkpointable, or say grit.dev/nccl: assume-safe"
    )
    return [reason]


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.1f} GiB"
