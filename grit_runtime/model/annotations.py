"""What a pod's annotations ask for. Pure; nothing here touches a file.

The keys are a contract with users; identity comes from the annotations that containerd's CRI
plugin writes itself (internal/cri/annotations/annotations.go), which a pod cannot set.
"""

import re
from typing import NamedTuple

from grit_runtime.errors import InvalidArgumentError

RESTORE_NAME = "grit.dev/restore-name"
CHECKPOINT = "grit.dev/checkpoint"
ON_FAILURE = "grit.dev/on-failure"
DEVICE_MAP = "grit.dev/device-map"
COMPLETED = "grit.dev/completed"
NCCL = "grit.dev/nccl"
TCP = "grit.dev/tcp"
CAPTURE = "grit.dev/capture"

_PREFIX = "grit.dev/"
_KNOWN = (RESTORE_NAME, CHECKPOINT, ON_FAILURE, DEVICE_MAP, COMPLETED, CAPTURE, NCCL, TCP)
_VALUES = {
    ON_FAILURE: ("fail", "cold-start"),
    COMPLETED: ("skip",),
    NCCL: ("checkpointable", "assume-safe"),
    TCP: ("refuse", "close", "established"),
}
_CRI = "io.kubernetes.cri."
CONTAINER_NAME = f"{_CRI}container-name"
_CAPTURED = re.compile(r"shm|emptydir:[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_NAME = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_.]{0,252}")


class Identity(NamedTuple):
    """Who a container is, as containerd says."""

    namespace: str
    pod: str
    pod_uid: str
    sandbox_id: str
    container: str


class RestoreOrder(NamedTuple):
    """Restore from the directory reached by `path` (components beneath checkpoint_root)."""

    path: tuple[str, ...]
    identity: Identity | None  # None: run by hand, without containerd's CRI plugin
    device_map: str
    cold_on_failure: bool  # start as if there were no checkpoint if the restore cannot be done
    skip_completed: bool  # do not run again what had exited 0
    tcp: str


def restore_order(annotations: dict[str, str], checkpoint_root: str) -> RestoreOrder | None:
    """What the container's annotations order, or None for an ordinary start.

    InvalidArgumentError names the annotation that cannot be followed.
    """
    if annotations.get(_CRI + "container-type", "container") != "container":
        return None
    asked = {key: value for key, value in annotations.items() if key.startswith(_PREFIX)}
    for key in asked:
        if key not in _KNOWN:
            raise InvalidArgumentError(
                f"annotation {key} is unknown; known are {', '.join(_KNOWN)}"
            )
    for key in _VALUES:
        _one_of(asked, key)
    capture(asked.get(CAPTURE, ""))
    if RESTORE_NAME not in asked and CHECKPOINT not in asked:
        return None
    identity = _identity(annotations)
    cold_on_failure = asked.get(ON_FAILURE) == "cold-start"
    if cold_on_failure and identity is None:
        # by hand the rw layer is not known to have been empty, so it cannot be emptied
        raise InvalidArgumentError(
            f"annotation {ON_FAILURE}: cold-start is for pods of containerd's CRI plugin"
        )
    return RestoreOrder(
        path=_path(asked, checkpoint_root, identity),
        identity=identity,
        device_map=asked.get(DEVICE_MAP, "auto"),
        cold_on_failure=cold_on_failure,
        skip_completed=COMPLETED in asked,
        tcp=tcp(asked),
    )


def wants_safe_nccl(annotations: dict[str, str]) -> bool:
    """Whether NCCL is to be started in a way that survives a checkpoint."""
    return annotations.get(NCCL) == "checkpointable"


def tcp(annotations: dict[str, str]) -> str:
    """What becomes of connections to the outside of the pod: refuse, close or established."""
    return _one_of(annotations, TCP)


def capture(text: str) -> frozenset[str]:
    """The volumes that are asked to go with a checkpoint: ``shm,emptydir:data``."""
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    for name in sorted(names):
        if not _CAPTURED.fullmatch(name):
            raise InvalidArgumentError(
                f"annotation {CAPTURE}: {name!r} is neither shm nor emptydir:NAME; volumes of "
                "other types are the new pod's to mount"
            )
    return names


def _one_of(annotations: dict[str, str], key: str) -> str:
    values = _VALUES[key]
    value = annotations.get(key, values[0])
    if value not in values:
        raise InvalidArgumentError(
            f"annotation {key}: expected {' or '.join(values)}, is {value!r}"
        )
    return value


def checkpoint_name(name: str) -> str:
    """*name* if it can name a checkpoint: one path component that no shell or tool misreads."""
    if not _NAME.fullmatch(name):
        raise InvalidArgumentError(
            f"checkpoint name {name!r}: expected letters, digits, '-', '_' and '.', "
            "beginning with a letter or digit"
        )
    return name


def _identity(annotations: dict[str, str]) -> Identity | None:
    keys = ("sandbox-namespace", "sandbox-name", "sandbox-uid", "sandbox-id", "container-name")
    values = [annotations.get(_CRI + key, "") for key in keys]
    if not any(values):
        return None
    for key, value in zip(keys, values, strict=True):
        if not value or "/" in value or value in (".", ".."):
            raise InvalidArgumentError(f"annotation {_CRI}{key}: unusable value {value!r}")
    return Identity(*values)


def _path(
    asked: dict[str, str], checkpoint_root: str, identity: Identity | None
) -> tuple[str, ...]:
    if CHECKPOINT in asked:
        return _beneath(asked[CHECKPOINT], checkpoint_root, identity)
    if identity is None:
        raise InvalidArgumentError(
            f"annotation {RESTORE_NAME} needs the pod's identity, which only containerd's CRI "
            f"plugin gives; by hand name the directory with {CHECKPOINT}"
        )
    return (identity.namespace, checkpoint_name(asked[RESTORE_NAME]))


def _beneath(directory: str, checkpoint_root: str, identity: Identity | None) -> tuple[str, ...]:
    allowed = checkpoint_root + (f"/{identity.namespace}" if identity else "")
    parts = directory.split("/")
    if ".." in parts or not directory.startswith(allowed + "/"):
        raise InvalidArgumentError(
            f"annotation {CHECKPOINT}: {directory!r} is not beneath {allowed}/"
        )
    names = tuple(part for part in directory[len(checkpoint_root) :].split("/") if part != "")
    if len(names) < (2 if identity else 1) or "." in names:
        raise InvalidArgumentError(
            f"annotation {CHECKPOINT}: {directory!r} is not a directory beneath {allowed}/"
        )
    return names
