"""Checking what a pod's containers share: memory limits, pids, user namespace, SysV IPC. Pure."""

from __future__ import annotations

from grit_runtime.errors import FailedPreconditionError, PodStateError, RoomError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

# The images of SysV IPC. Each container's dump has all objects of the pod, and CRIU creates them.
SYSV_IMAGES = ("ipcns-shm", "ipcns-msg", "ipcns-sem")


def memory_limit_bytes(spec: Mapping[str, Any]) -> int:
    """The memory limit of the container's cgroup; 0 or less for no limit."""
    resources = spec["linux"].get("resources") or {}
    return (resources.get("memory") or {}).get("limit") or 0


def user_namespace_refusal(spec: Mapping[str, Any]) -> str | None:
    """Why a container that joins its pod's user namespace would not come back."""
    joined = [ns for ns in spec["linux"].get("namespaces") or () if ns.get("path")]
    if not any(ns["type"] == "user" for ns in joined):
        return None
    return (
        "its pod has a user namespace (hostUsers: false), and CRIU would make another one, which "
        "has no right to the pod's network; run the pod with hostUsers: true"
    )


def check_memory(limit: int, pages_bytes: int) -> None:
    """FailedPreconditionError if the dumped memory exceeds the live spec's limit.

    It includes the device memory of CUDA processes, which the driver stages there.
    """
    if 0 < limit < pages_bytes:
        raise RoomError(
            f"the dump holds {pages_bytes} bytes of memory, but the container's memory limit is "
            f"{limit}; raise resources.limits.memory above the former"
        )


def check_numbers(dumped: Iterable[int], taken: Mapping[int, str]) -> None:
    """FailedPreconditionError if a dumped task's pid is *taken* in the new namespace, by a task."""
    for number in sorted(dumped):
        if number in taken:
            raise PodStateError(
                f"process number {number} of the dump is taken by {taken[number]} in the process "
                "namespace that the container shares; start the checkpoint's containers in a new "
                "pod, before sidecars that it does not list and without exec probes that run sooner"
            )


def sysv_owner(running: Iterable[str], attached: Iterable[str]) -> str:
    """The only container whose restore creates the pod's SysV IPC objects.

    It is the container that has attached shared memory, which must exist when it is restored, or
    the first one *running* if none has.
    """
    names = list(attached)
    reason = sysv_refusal(names)
    if reason:
        raise FailedPreconditionError(reason)
    return [*names, *running][0]


def sysv_refusal(attached: Sequence[str]) -> str | None:
    """Why the SysV shared memory that these containers have attached would not come back."""
    if len(attached) < 2:
        return None
    return (
        f"containers {' and '.join(attached)} have attached SysV shared memory, which CRIU can "
        "restore for one container alone; use POSIX shared memory, or one container"
    )
