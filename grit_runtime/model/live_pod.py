"""The pod that a dump is to be restored into. Pure."""

from __future__ import annotations

from typing import Any

from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.model.mount_plan import LiveMount


class LivePod(NamedTuple):
    """One container of the live pod, as its bundle and the node show it.

    *exposed* are those of its masked and read-only paths that exist in it on this node;
    *node_namespaces* the types in its config.json whose path is the node's own namespace.
    """

    spec: dict[str, Any]
    mounts: tuple[LiveMount, ...]
    exposed: frozenset[str]
    node_namespaces: frozenset[str]
