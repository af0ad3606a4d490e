"""The metadata files that checkpointctl and container engines read in a checkpoint. Pure.

Source: checkpoint-restore/checkpointctl lib/metadata.go (ContainerConfig, ContainerdStatus) and
internal/container.go (getContainerdInfo, getCRIOInfo).
"""

from __future__ import annotations

import json
import re
from typing import Any

from grit_runtime.errors import ImageError
from grit_runtime.model import cri

# Where an engine keeps the name that the pod's spec has for the container.
_CRIO_METADATA = "io.kubernetes.cri-o.Metadata"
_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")  # a DNS label, as Kubernetes has it


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


def container_name(spec_dump: bytes) -> str | None:
    """The name in its pod of the container with this spec.dump; None if it was in no pod.

    ImageError if this is not an OCI runtime spec, or the name is not valid in Kubernetes.
    """
    annotations = _object(_object(spec_dump).get("annotations") or {})
    name = annotations.get(cri.CONTAINER_NAME)
    if _CRIO_METADATA in annotations:
        name = _object(annotations[_CRIO_METADATA]).get("name")
    elif name is None:
        return None
    if not _NAME.fullmatch(_text(name)):
        raise ImageError(f"spec.dump: {name!r:.60} is no name of a container")
    return _text(name)


def deleted_files(data: bytes) -> list[bytes]:
    """The paths in deleted.files, from the root; podman and CRI-O have it in place of whiteouts."""
    paths = _json(data, "deleted.files")
    if not isinstance(paths, list):
        raise ImageError("deleted.files: expected a list of paths")
    return [_text(path).lstrip("/").encode("utf-8", "surrogateescape") for path in paths]


def _object(value: Any) -> dict[str, Any]:
    if isinstance(value, bytes | str):
        value = _json(value, "spec.dump")
    if not isinstance(value, dict):
        raise ImageError(f"spec.dump: expected an object, is {value!r:.60}")
    return value


def _json(data: bytes | str, name: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{name}: not JSON: {error}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ImageError(f"spec.dump: expected a text, is {value!r:.60}")
    return value
