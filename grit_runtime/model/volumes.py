"""Choosing the volumes of a pod that a checkpoint saves, and finding them on a node. Pure.

A volume has the name that `grit.dev/capture` gives it: ``shm`` for the pod's own /dev/shm,
``emptydir:NAME``. Whatever is mounted at /dev/shm is memory that the pod's processes share, so it
is always saved; another emptyDir only on request, because it may be large, and an init container
may fill it again. Volumes of other types exist independently of the pod.

Paths: kubernetes pkg/kubelet/kubelet_getters.go getPodVolumeDir, pkg/volume/util/subpath
doBindSubPath; containerd internal/cri/server/podsandbox/helpers.go getSandboxDevShm.
"""

from __future__ import annotations

import re

from grit_runtime.model import cri
from grit_runtime.model.paths import nearest_mount
from grit_runtime.model.volume_steps import Filled, LetGo, Use
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence, Set
    from typing import Any

    from grit_runtime.model.volume_steps import Step

_SHM = "/dev/shm"  # noqa: S108  a destination in a container


class Mounted(NamedTuple):
    """A volume that can be saved: its directory on the node, its place in a container."""

    name: str
    path: str
    destination: str


def mounted(spec: dict[str, Any]) -> list[Mounted]:
    """The volumes in a container's config.json that live and end with its pod."""
    annotations = spec.get("annotations") or {}
    pod_uid = annotations.get(cri.SANDBOX_UID)
    sandbox_id = annotations.get(cri.SANDBOX_ID)
    if not pod_uid or not sandbox_id:
        return []
    # A subPath of a volume of any type lies below volume-subpaths.
    empty_dir = re.compile(
        rf"(/.+/pods/{re.escape(pod_uid)})/"
        r"(?:volumes/kubernetes\.io~empty-dir|volume-subpaths)/([^/]+)(?:/.+)?"
    )
    found = []
    for mount in spec.get("mounts") or ():
        source, destination = mount.get("source", ""), mount["destination"]
        match = empty_dir.fullmatch(source)
        if match:
            path = f"{match[1]}/volumes/kubernetes.io~empty-dir/{match[2]}"
            found.append(Mounted(f"emptydir:{match[2]}", path, destination))
        elif destination == _SHM and source.endswith(f"/sandboxes/{sandbox_id}/shm"):
            found.append(Mounted("shm", source, destination))
    return found


def captured(volumes: Iterable[Mounted], asked: Set[str]) -> dict[str, str]:
    """The paths, by name, of the volumes to save."""
    return {v.name: v.path for v in volumes if v.name in asked or v.destination == _SHM}


def file_name(name: str) -> str:
    """The file of a captured volume in a checkpoint."""
    return f"pod/{name.replace(':', '-')}.tar"


def holder(path: str, volumes: Iterable[Mounted], destinations: Iterable[str]) -> Mounted | None:
    """Which of *volumes* has the file that a container calls *path*, of all it has mounted."""
    nearest = nearest_mount(path, set(destinations))
    return next((volume for volume in volumes if volume.destination == nearest), None)


def is_filled_anew(volume: Mounted, written: Iterable[str]) -> bool:
    """Whether the new pod fills an emptyDir by itself: its containers that had ended run again.

    *written* are the sources, on the node, of what those could write to.
    """
    part = f"/volume-subpaths/{volume.name.partition(':')[2]}/"
    return any(source == volume.path or part in source for source in written)


class Holding(NamedTuple):
    """The content of a sandbox's journal of volumes: which containers use which, what is filled."""

    users: Mapping[str, Set[str]]  # container ids by volume
    paths: Mapping[str, str]
    filled: Set[str]

    def only(self, container_id: str) -> list[str]:
        """Paths of the volumes that only this container relies on."""
        return [self.paths[name] for name, ids in self.users.items() if ids == {container_id}]

    def is_needed_without(self, container_id: str) -> bool:
        return any(ids - {container_id} for ids in self.users.values())


def holding(steps: Sequence[Step]) -> Holding:
    """Fold the steps of the journal, oldest first."""
    users: dict[str, set[str]] = {}
    paths: dict[str, str] = {}
    filled: set[str] = set()
    for step in steps:
        match step:
            case Use(volume, path, container_id):
                users.setdefault(volume, set()).add(container_id)
                paths[volume] = path
            case Filled(volume):
                filled.add(volume)
            case LetGo(container_id):
                for ids in users.values():
                    ids.discard(container_id)
                filled = {name for name in filled if users[name]}
    return Holding(users, paths, filled)
