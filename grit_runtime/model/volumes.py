"""Which of a pod's volumes go with a checkpoint, and where they lie on a node. Pure.

A volume has the name that `grit.dev/capture` gives it: ``shm`` for the pod's own /dev/shm,
``emptydir:NAME``. Whatever lies at /dev/shm is memory that the pod's processes share, so it always
goes along; another emptyDir only when asked for, for it may be large and be made again by an init
container. Volumes of other types live on elsewhere.

Paths: kubernetes pkg/kubelet/kubelet_getters.go getPodVolumeDir, pkg/volume/util/subpath
doBindSubPath; containerd internal/cri/server/podsandbox/helpers.go getSandboxDevShm.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from grit_runtime.model.paths import above

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence, Set
    from typing import Any

_SHM = "/dev/shm"  # noqa: S108  a destination in a container
_CRI = "io.kubernetes.cri."


class Mounted(NamedTuple):
    """A volume that can be carried: its directory on the node, where a container sees it."""

    name: str
    path: str
    destination: str


def mounted(spec: dict[str, Any]) -> list[Mounted]:
    """The volumes in a container's config.json that live and end with its pod."""
    annotations = spec.get("annotations") or {}
    pod_uid = annotations.get(f"{_CRI}sandbox-uid")
    sandbox_id = annotations.get(f"{_CRI}sandbox-id")
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
    """The paths, by name, of those that go along."""
    return {v.name: v.path for v in volumes if v.name in asked or v.destination == _SHM}


def file_name(name: str) -> str:
    """Where a captured volume lies in a checkpoint."""
    return f"pod/{name.replace(':', '-')}.tar"


def holder(path: str, volumes: Iterable[Mounted], destinations: Iterable[str]) -> Mounted | None:
    """Which of *volumes* has the file that a container calls *path*, of all it has mounted."""
    nearest = above(path, set(destinations))
    return next((volume for volume in volumes if volume.destination == nearest), None)


def is_filled_anew(volume: Mounted, written: Iterable[str]) -> bool:
    """Whether the new pod fills an emptyDir by itself: its containers that had ended run again.

    *written* are the sources, on the node, of what those could write to.
    """
    part = f"/volume-subpaths/{volume.name.partition(':')[2]}/"
    return any(source == volume.path or part in source for source in written)


class Holding(NamedTuple):
    """What a sandbox's journal of volumes says: who relies on which, and what is filled."""

    users: Mapping[str, Set[str]]  # container ids by volume
    paths: Mapping[str, str]
    filled: Set[str]

    def only(self, container_id: str) -> list[str]:
        """Paths of the volumes that nobody but this container relies on."""
        return [self.paths[name] for name, ids in self.users.items() if ids == {container_id}]

    def is_needed_without(self, container_id: str) -> bool:
        return any(ids - {container_id} for ids in self.users.values())


def holding(steps: Sequence[dict[str, Any]]) -> Holding:
    """Fold the steps of the journal, oldest first."""
    users: dict[str, set[str]] = {}
    paths: dict[str, str] = {}
    filled: set[str] = set()
    for step in steps:
        match step["step"]:
            case "use":
                users.setdefault(step["volume"], set()).add(step["container_id"])
                paths[step["volume"]] = step["path"]
            case "filled":
                filled.add(step["volume"])
            case "let go":
                for ids in users.values():
                    ids.discard(step["container_id"])
                filled = {name for name in filled if users[name]}
            case _:
                pass
    return Holding(users, paths, filled)
