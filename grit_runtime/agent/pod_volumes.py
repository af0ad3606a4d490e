"""A volume that kubelet has mounted for a pod of this node, by ``volume://POD_UID/VOLUME``.

So an agent reaches volumes of any kind. Paths: kubernetes pkg/kubelet/kubelet_getters.go
getPodVolumeDir, pkg/volume/csi/csi_mounter.go GetPath.
"""

from __future__ import annotations

import os

from grit_runtime.errors import NoStoreError
from grit_runtime.files import confine
from grit_runtime.host import kubelet
from grit_runtime.host.descriptor import closing_fd

SCHEME = "volume://"

_CSI = "kubernetes.io~csi"


def resolved(url: str) -> str:
    """The store's URL: the directory of the volume, if it is one."""
    return directory(url) if url.startswith(SCHEME) else url


def directory(url: str) -> str:
    """Where the volume is mounted. NoStoreError if it is not.

    All names up to a mount are root's: no symbolic link is followed, and what is not mounted would
    be the node's own disk.
    """
    uid, _, volume = url.removeprefix(SCHEME).partition("/")
    pods = kubelet.pods_dir()
    try:
        with closing_fd(confine.open_dir(pods, uid, "volumes")) as volumes_fd:
            for kind in sorted(os.listdir(volumes_fd)):
                names = [kind, volume, "mount"] if kind == _CSI else [kind, volume]
                if _is_mounted(volumes_fd, names):
                    return "/".join((pods, uid, "volumes", *names))
    except FileNotFoundError:
        pass
    raise NoStoreError(
        f"volume {volume[:80]} of pod {uid[:80]} is not mounted on this node; is the pod running?"
    )


def _is_mounted(volumes_fd: int, names: list[str]) -> bool:
    try:
        with (
            closing_fd(confine.descend(volumes_fd, names[:-1])) as parent_fd,
            closing_fd(confine.descend(parent_fd, names[-1:])) as fd,
        ):
            return _mount_id(fd) != _mount_id(parent_fd)
    except FileNotFoundError:
        return False


def _mount_id(fd: int) -> str:
    """As proc_pid_fdinfo(5) has it: the device would be the same of a directory mounted again."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return next(line for line in file if line.startswith("mnt_id:"))
