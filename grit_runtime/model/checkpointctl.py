"""The metadata files that checkpointctl and container engines read in a checkpoint. Pure.

Source: checkpoint-restore/checkpointctl lib/metadata.go (ContainerConfig, ContainerdStatus).
"""

from __future__ import annotations


def config_dump(
    *, container_id: str, name: str, image: str, image_digest: str, created: str, now: str
) -> dict[str, object]:
    """config.dump; times as RFC 3339 in UTC."""
    return {
        "id": container_id,
        "name": name,
        "rootfsImage": image,
        "rootfsImageRef": image_digest,
        "rootfsImageName": image,
        "runtime": "io.containerd.runc.v2",
        "createdTime": created,
        "checkpointedTime": now,
        "restoredTime": "0001-01-01T00:00:00Z",
        "restored": False,
    }


def status_dump(*, created_ns: int, started_ns: int) -> dict[str, object]:
    """status.dump of a container that runs."""
    return {
        "CreatedAt": created_ns,
        "StartedAt": started_ns,
        "FinishedAt": 0,
        "ExitCode": 0,
        "Pid": 0,
        "Reason": "",
        "Message": "",
    }
