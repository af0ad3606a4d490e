"""The checkpoints of this node."""

from __future__ import annotations

import os

from grit_runtime.errors import GritError, reason
from grit_runtime.files import checkpoint_dir, confine
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

SEALED = "sealed"


class Found(NamedTuple):
    """A checkpoint, here or in a store."""

    checkpoint: str  # NAMESPACE/NAME
    state: str  # SEALED, or the reason why it is of no use
    created: str = ""
    pod: str = ""
    containers: tuple[str, ...] = ()
    size_bytes: int = 0
    gpu_bytes: int = 0
    sha256: str = ""


def beneath(root: str) -> Iterator[Found]:
    """What is below the checkpoint root; names that begin with a dot are still being made."""
    for namespace in _directories(root):
        for name in _directories(root, namespace):
            yield _found(root, namespace, name)


def _found(root: str, namespace: str, name: str) -> Found:
    path = f"{root}/{namespace}/{name}"
    try:
        with closing_fd(confine.open_dir(root, namespace, name)) as dir_fd:
            sealed = checkpoint_dir.read_manifest(dir_fd, path)
    except (GritError, OSError) as error:
        return Found(f"{namespace}/{name}", reason(error))
    manifest = sealed.manifest
    return Found(
        f"{namespace}/{name}",
        SEALED,
        manifest.created,
        manifest.pod.name,
        tuple(container.name for container in manifest.containers),
        manifest.size_bytes,
        manifest.gpu_bytes,
        sealed.sha256,
    )


def _directories(root: str, *names: str) -> list[str]:
    try:
        fd = confine.open_dir(root, *names)
    except FileNotFoundError:
        return []
    with closing_fd(fd), os.scandir(fd) as entries:
        found = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return sorted(name for name in found if not name.startswith("."))
