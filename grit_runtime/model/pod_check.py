"""What the containers of a pod have between them that a restore can trip over. Pure."""

from __future__ import annotations

from grit_runtime.errors import FailedPreconditionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

# The images of SysV IPC. Each container's dump has all of the pod's, and CRIU makes them anew.
SYSV_IMAGES = ("ipcns-shm", "ipcns-msg", "ipcns-sem")


def check_memory(spec: Mapping[str, Any], pages_bytes: int) -> None:
    """FailedPreconditionError if the dumped memory exceeds the live spec's limit.

    Of a CUDA process its device memory is part of it: the driver stages it there.
    """
    resources = spec["linux"].get("resources") or {}
    limit = (resources.get("memory") or {}).get("limit") or 0
    if 0 < limit < pages_bytes:
        raise FailedPreconditionError(
            f"the dump holds {pages_bytes} bytes of memory, but the container's memory limit is "
            f"{limit}; raise resources.limits.memory above the former"
        )


def check_numbers(dumped: Iterable[int], taken: Mapping[int, str]) -> None:
    """FailedPreconditionError if a dumped task's number is taken (by which task) where it goes."""
    for number in sorted(dumped):
        if number in taken:
            raise FailedPreconditionError(
                f"process number {number} of the dump is taken by {taken[number]} in the process "
                "namespace that the container shares; start the checkpoint's containers in a new "
                "pod, before sidecars that it does not list and without exec probes that run sooner"
            )


def sysv_owner(running: Iterable[str], attached: Iterable[str]) -> str:
    """The container whose restore makes the pod's SysV IPC objects: it must be one alone.

    It is the one that has attached shared memory, which must exist when it is restored, and the
    first of those *running* if none has.
    """
    names = list(attached)
    if len(names) > 1:
        raise FailedPreconditionError(
            f"containers {' and '.join(names)} have attached SysV shared memory, which CRIU can "
            "restore for one container alone; use POSIX shared memory, or one container"
        )
    return [*names, *running][0]
