"""A running container, as runc knows it."""

from __future__ import annotations

from typing import Any

from grit_runtime.host import cgroup, config_json, runc
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.host.runc import Runc


class RunningContainer(NamedTuple):
    """A container; *paused* means that somebody had paused it before grit came."""

    name: str  # in its pod; empty where nobody names it
    id: str
    init_pid: int
    paused: bool
    bundle_dir: str
    spec: dict[str, Any]  # the bundle's config.json

    def pids(self) -> set[int]:
        """The pids, on this node, of all its processes now."""
        return cgroup.pids(cgroup.of(self.init_pid))


def read(
    tool: Runc, name: str, container_id: str, decided: dict[str, str] | None = None
) -> RunningContainer:
    """The container as runc knows it; NotFoundError if runc does not.

    Annotations that are *decided* count instead of its own.
    """
    state = runc.state(tool, container_id)
    spec = config_json.read(state.bundle_dir)
    if decided:
        spec["annotations"] = {**spec.get("annotations", {}), **decided}
    paused = state.status == "paused"
    return RunningContainer(name, container_id, state.pid, paused, state.bundle_dir, spec)
