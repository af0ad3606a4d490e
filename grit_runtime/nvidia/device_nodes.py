"""Making the NVIDIA device nodes in a running container's /dev those of its config.json.

CRIU restores the nodes of the old pod, with the old cards' minors; the new pod's device cgroup
decides what may be opened. Everything is done beneath the container's root without following links.
"""

from __future__ import annotations

import os
import stat
from typing import Any

from grit_runtime.files import confine
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import nvidia_nodes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_TYPES = {"c": stat.S_IFCHR, "b": stat.S_IFBLK}


def of_spec(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """The NVIDIA nodes that config.json gives the container."""
    nodes = spec["linux"].get("devices") or ()
    return [node for node in nodes if nvidia_nodes.is_node(node["path"])]


def replace_nvidia_nodes(init_pid: int, spec: dict[str, Any]) -> None:
    """Remove the container's NVIDIA nodes and make those of config.json."""
    with closing_fd(confine.open_dir(f"/proc/{init_pid}/root", "dev")) as dev_fd:
        for name in os.listdir(dev_fd):
            if name == "nvidia-caps" or nvidia_nodes.is_node(f"/dev/{name}"):
                confine.remove_tree(dev_fd, name)
        for node in of_spec(spec):
            _make(dev_fd, node["path"].removeprefix("/dev/").split("/"), node)


def _make(dev_fd: int, parts: Sequence[str], node: dict[str, Any]) -> None:
    *parents, name = parts
    if parents and parents[0] not in os.listdir(dev_fd):
        os.mkdir(parents[0], 0o755, dir_fd=dev_fd)
    mode = node.get("fileMode", 0o666)
    device = os.makedev(node["major"], node["minor"])
    with closing_fd(confine.descend(dev_fd, parents[:1])) as parent_fd:
        os.mknod(name, _TYPES[node["type"]] | mode, device, dir_fd=parent_fd)
        # mknod's mode is cut by the umask
        os.chmod(name, mode, dir_fd=parent_fd)
        os.chown(name, node.get("uid", 0), node.get("gid", 0), dir_fd=parent_fd)
