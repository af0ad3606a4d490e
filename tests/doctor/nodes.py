"""Nodes as the checks are given them, made of what a test says of them."""

from __future__ import annotations

from typing import Any

from grit_runtime.config import Config
from grit_runtime.doctor.node import Answers, Driver, Node
from grit_runtime.errors import NotFoundError


def node(**told: Any) -> Node:
    """A node with a driver, without containerd and kubelet, but for what is *told*."""
    usual = Node(Config(), NotFoundError("no containerd"), None, Driver("580.65.06", ()), ())
    return usual._replace(**told)


def containerd(
    *, cdi_directories: tuple[str, ...] = (), handler: dict[str, Any] | None = None
) -> Answers:
    """What a containerd says that has these directories of CDI, and perhaps a handler of grit's."""
    return Answers(
        version="v2.1.9",
        not_ready=(),
        runtimes={"runc": {}, **({"grit": handler} if handler else {})},
        default_runtime="runc",
        image_directory="/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs",
        cdi_directories=cdi_directories,
    )
