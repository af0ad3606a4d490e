"""The NVIDIA device nodes in a running container's /dev, made equal to its config.json.

CRIU brings back the nodes of the old pod, with the old cards' minors; what may be opened is decided
by the device cgroup, which is the new pod's. Everything is done beneath the container's root
without following links.
"""

from __future__ import annotations

import os
import re
import stat
from typing import Any

from grit_runtime.host import confine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_NVIDIA = re.compile(r"/dev/nvidia(?:\d+|ctl|-uvm|-uvm-tools|-modeset|-caps/[^/]+)")
_TYPES = {"c": stat.S_IFCHR, "b": stat.S_IFBLK}


def nvidia_nodes(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The NVIDIA nodes that config.json gives the container."""
    nodes = spec["linux"].get("devices") or ()
    return [node for node in nodes if _NVIDIA.fullmatch(node["path"])]


def equalize(init_pid: int, spec: dict[str, Any]) -> None:
    """Remove the container's NVIDIA nodes and make those of config.json."""
    root_fd = os.open(f"/proc/{init_pid}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    dev_fd = confine.descend(root_fd, ("dev",))
    os.close(root_fd)
    for name in os.listdir(dev_fd):
        if name == "nvidia-caps" or _NVIDIA.fullmatch(f"/dev/{name}"):
            confine.remove_tree(dev_fd, name)
    for node in nvidia_nodes(spec):
        _make(dev_fd, node["path"].removeprefix("/dev/").split("/"), node)
    os.close(dev_fd)


def _make(dev_fd: int, parts: Sequence[str], node: dict[str, Any]) -> None:
    parent_fd = dev_fd
    if len(parts) > 1:
        if parts[0] not in os.listdir(dev_fd):
            os.mkdir(parts[0], 0o755, dir_fd=dev_fd)
        parent_fd = confine.descend(dev_fd, parts[:1])
    mode = node.get("fileMode", 0o666)
    os.mknod(
        parts[-1],
        _TYPES[node["type"]] | mode,
        os.makedev(node["major"], node["minor"]),
        dir_fd=parent_fd,
    )
    # mknod's mode is cut by the umask
    os.chmod(parts[-1], mode, dir_fd=parent_fd)
    os.chown(parts[-1], node.get("uid", 0), node.get("gid", 0), dir_fd=parent_fd)
    if parent_fd != dev_fd:
        os.close(parent_fd)
