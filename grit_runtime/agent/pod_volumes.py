"""A volume that kubelet has mounted for a pod of this node, by ``volume://POD_UID/VOLUME``.

So an agent reaches volumes of any kind. Paths: kubernetes pkg/kubelet/kubelet_getters.go
getPodVolumeDir, pkg/volume/csi/csi_mounter.go GetPath.
"""

from __future__ import annotations

import os
from contextlib import suppress

from grit_runtime.errors import NoStoreError
from grit_runtime.files import confine
from grit_runtime.host import kubelet
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.store import backend
from grit_runtime.store.directory import Directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.store.backend import Backend

SCHEME = "volume://"

_CSI = "kubernetes.io~csi"


def open_store(url: str, *, make: bool = False) -> Backend:
    """As `backend.open_store`, which *url* may be for too.

    NoStoreError for a volume that is not mounted: what lies there is the node's own disk.
    """
    if not url.startswith(SCHEME):
        return backend.open_store(url, make=make)
    return backend.known(_mounted(url), make=make)


def _mounted(url: str) -> Directory:
    """The root of the volume.

    All names up to a mount are root's: no symbolic link is followed. While the root is open, it
    stays the volume's, whatever becomes of the mount.
    """
    uid, _, volume = url.removeprefix(SCHEME).partition("/")
    pods = kubelet.pods_dir()
    with suppress(FileNotFoundError), closing_fd(confine.open_dir(pods, uid, "volumes")) as fd:
        for kind in sorted(os.listdir(fd)):
            names = [kind, volume, "mount"] if kind == _CSI else [kind, volume]
            root_fd = _root(fd, names)
            if root_fd is not None:
                path = "/".join((pods, uid, "volumes", *names))
                return Directory(path, make=False, fd=root_fd)
    raise NoStoreError(
        f"volume {volume[:80]} of pod {uid[:80]} is not mounted on this node; is the pod running?"
    )


def _root(volumes_fd: int, names: list[str]) -> int | None:
    """Fd of what is mounted there; None if nothing is."""
    with (
        suppress(FileNotFoundError),
        closing_fd(confine.descend(volumes_fd, names[:-1])) as parent_fd,
    ):
        fd = confine.descend(parent_fd, names[-1:])
        if _mount_id(fd) != _mount_id(parent_fd):
            return fd
        os.close(fd)
    return None


def _mount_id(fd: int) -> str:
    """As proc_pid_fdinfo(5) has it: the device would be the same of a directory mounted again."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return next(line for line in file if line.startswith("mnt_id:"))
