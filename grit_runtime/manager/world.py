"""What every controller of the manager works with."""

from __future__ import annotations

from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.manager.agents import Agents
    from grit_runtime.manager.cluster import Cluster
    from grit_runtime.manager.nodes import Nodes


class World(NamedTuple):
    cluster: Cluster
    agents: Agents
    nodes: Nodes
    checkpoint_root: str  # of all nodes
