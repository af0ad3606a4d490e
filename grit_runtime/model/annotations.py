"""Reading a pod's annotations. Pure; nothing here touches a file.

The keys are a contract with users; identity comes from the annotations that containerd's CRI
plugin writes itself (internal/cri/annotations/annotations.go), which a pod cannot set.
"""

from __future__ import annotations

import re

from grit_runtime.errors import AnnotationError
from grit_runtime.model import cri
from grit_runtime.startup.named import NamedTuple

RESTORE_NAME = "grit.dev/restore-name"
CHECKPOINT = "grit.dev/checkpoint"
ON_FAILURE = "grit.dev/on-failure"
DEVICE_MAP = "grit.dev/device-map"
COMPLETED = "grit.dev/completed"
NCCL = "grit.dev/nccl"
TCP = "grit.dev/tcp"
CAPTURE = "grit.dev/capture"
STRICT = "grit.dev/strict"
CLONE = "grit.dev/clone"
MANIFEST_DIGEST = "grit.dev/manifest-digest"

_PREFIX = "grit.dev/"
KNOWN = (
    *(RESTORE_NAME, CHECKPOINT, ON_FAILURE, DEVICE_MAP, COMPLETED, CAPTURE, NCCL, TCP, STRICT),
    *(CLONE, MANIFEST_DIGEST),
)
# Keys with this prefix change what a restore does. New ones must have it too: a node that does not
# know such a key refuses the pod, while it ignores other unknown keys.
_MUST_BE_KNOWN = f"{_PREFIX}restore-"
_VALUES = {
    ON_FAILURE: ("fail", "cold-start"),
    COMPLETED: ("skip",),
    NCCL: ("checkpointable", "assume-safe"),
    TCP: ("refuse", "close", "established"),
    STRICT: ("false", "true"),
    CLONE: ("false", "true"),
}
_CAPTURED = re.compile(r"shm|emptydir:[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_NAME_LIMIT = 253
_NAME = re.compile(rf"[A-Za-z0-9][-A-Za-z0-9_.]{{0,{_NAME_LIMIT - 1}}}")


class Identity(NamedTuple):
    """The identity of a container, from containerd."""

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
    strict: bool  # refuse a restore that would come back different
    manifest_sha256: str = ""  # of the only acceptable checkpoint, if it is known
    is_clone: bool = False  # more than one may go on from it
    is_second_life: bool = False  # the restore of a held container that was killed
    keeps_volumes: bool = False  # leave the pod's volumes as they are
    beside_living: bool = False  # other containers of the pod run on and are not restored


def restore_order(annotations: dict[str, str], checkpoint_root: str) -> RestoreOrder | None:
    """What the container's annotations order, or None for an ordinary start.

    InvalidArgumentError names the annotation that cannot be followed.
    """
    if not is_container(annotations):
        return None
    asked = {key: value for key, value in annotations.items() if key.startswith(_PREFIX)}
    for key in unknown(asked):
        if key.startswith(_MUST_BE_KNOWN):
            raise AnnotationError(
                f"annotation {key} is unknown to grit on this node, and would change what a "
                f"restore does; upgrade grit here, or correct it: known are {', '.join(KNOWN)}"
            )
    for key in _VALUES:
        _one_of(asked, key)
    capture(asked.get(CAPTURE, ""))
    if RESTORE_NAME not in asked and CHECKPOINT not in asked:
        return None
    identity = identity_of(annotations)
    cold_on_failure = asked.get(ON_FAILURE) == "cold-start"
    if cold_on_failure and identity is None:
        # by hand the rw layer is not known to have been empty, so it cannot be emptied
        raise AnnotationError(
            f"annotation {ON_FAILURE}: cold-start is for pods of containerd's CRI plugin"
        )
    return RestoreOrder(
        path=_path(asked, checkpoint_root, identity),
        identity=identity,
        device_map=asked.get(DEVICE_MAP, "auto"),
        cold_on_failure=cold_on_failure,
        skip_completed=COMPLETED in asked,
        tcp=tcp(asked),
        strict=strict(asked),
        manifest_sha256=_digest(asked.get(MANIFEST_DIGEST, "")),
        is_clone=asked.get(CLONE) == "true",
    )


def unknown(annotations: dict[str, str]) -> list[str]:
    """Keys with grit's prefix that this version does not know."""
    return [key for key in annotations if key.startswith(_PREFIX) and key not in KNOWN]


def wants_safe_nccl(annotations: dict[str, str]) -> bool:
    """Whether NCCL is to be started in a way that survives a checkpoint."""
    return annotations.get(NCCL) == "checkpointable"


def tcp(annotations: dict[str, str]) -> str:
    """What becomes of connections to the outside of the pod: refuse, close or established."""
    return _one_of(annotations, TCP)


def nccl(annotations: dict[str, str]) -> str:
    """How NCCL is started, or what is taken for granted of it: checkpointable or assume-safe."""
    return _one_of(annotations, NCCL)


def strict(annotations: dict[str, str]) -> bool:
    """Whether to refuse what would come back different."""
    return _one_of(annotations, STRICT) == "true"


def capture(text: str) -> frozenset[str]:
    """The volumes to capture, from text like ``shm,emptydir:data``."""
    names = frozenset(name.strip() for name in text.split(",") if name.strip())
    for name in sorted(names):
        if not _CAPTURED.fullmatch(name):
            raise AnnotationError(
                f"annotation {CAPTURE}: {name!r} is neither shm nor emptydir:NAME; volumes of "
                "other types are the new pod's to mount"
            )
    return names


def _digest(text: str) -> str:
    """The hexadecimal digits of ``sha256:HEX`` or ``HEX``; "" for an empty text."""
    match = _DIGEST.fullmatch(text)
    if text and match is None:
        raise AnnotationError(
            f"annotation {MANIFEST_DIGEST}: expected sha256: and 64 digits, what sha256sum says of "
            f"manifest.json, is {text!r}"
        )
    return match[1] if match else ""


def _one_of(annotations: dict[str, str], key: str) -> str:
    values = _VALUES[key]
    value = annotations.get(key, values[0])
    if value not in values:
        raise AnnotationError(f"annotation {key}: expected {' or '.join(values)}, is {value!r}")
    return value


def checkpoint_name(name: str) -> str:
    """*name* if it can name a checkpoint: one path component that no shell or tool misreads."""
    if not _NAME.fullmatch(name):
        raise AnnotationError(
            f"checkpoint name {name!r}: expected letters, digits, '-', '_' and '.', at most "
            f"{_NAME_LIMIT} of them, beginning with a letter or digit"
        )
    return name


def is_container(annotations: dict[str, str]) -> bool:
    """Whether the annotations are a container's, and not those of the pod's sandbox."""
    return annotations.get(cri.CONTAINER_TYPE, "container") == "container"


def identity_of(annotations: dict[str, str]) -> Identity | None:
    """The container's identity; None if runc was called by hand."""
    keys = ("sandbox-namespace", "sandbox-name", "sandbox-uid", "sandbox-id", "container-name")
    values = [annotations.get(cri.PREFIX + key, "") for key in keys]
    if not any(values):
        return None
    for key, value in zip(keys, values, strict=True):
        if not value or "/" in value or value in (".", ".."):
            raise AnnotationError(f"annotation {cri.PREFIX}{key}: unusable value {value!r}")
    return Identity(*values)


def _path(
    asked: dict[str, str], checkpoint_root: str, identity: Identity | None
) -> tuple[str, ...]:
    if CHECKPOINT in asked:
        return _beneath(asked[CHECKPOINT], checkpoint_root, identity)
    if identity is None:
        raise AnnotationError(
            f"annotation {RESTORE_NAME} needs the pod's identity, which only containerd's CRI "
            f"plugin gives; by hand name the directory with {CHECKPOINT}"
        )
    return (identity.namespace, checkpoint_name(asked[RESTORE_NAME]))


def _beneath(directory: str, checkpoint_root: str, identity: Identity | None) -> tuple[str, ...]:
    allowed = checkpoint_root + (f"/{identity.namespace}" if identity else "")
    parts = directory.split("/")
    if ".." in parts or not directory.startswith(allowed + "/"):
        raise AnnotationError(f"annotation {CHECKPOINT}: {directory!r} is not beneath {allowed}/")
    names = tuple(part for part in directory[len(checkpoint_root) :].split("/") if part != "")
    if len(names) < (2 if identity else 1) or "." in names:
        raise AnnotationError(
            f"annotation {CHECKPOINT}: {directory!r} is not a directory beneath {allowed}/"
        )
    return names
