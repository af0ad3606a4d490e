"""The order for a checkpoint, and the context that all steps of taking it share."""

from __future__ import annotations

import os
from typing import Literal

from grit_runtime.host import journal
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.config import Config
    from grit_runtime.host.containerd import Pod
    from grit_runtime.host.journal import Journal
    from grit_runtime.host.runc import Runc
    from grit_runtime.log import Timeline
    from grit_runtime.model.checkpoint_steps import Step
    from grit_runtime.nvidia.gpu_driver import Driver
    from grit_runtime.pod.running_container import RunningContainer

After = Literal["running", "frozen", "stopped"]


class Order(NamedTuple):
    """The pod with the containers to dump, the checkpoint's name, what becomes of the source."""

    pod: Pod
    name: str
    after: After
    replace: bool
    pod_is_going: bool
    capture: frozenset[str]  # volumes, besides those that the pod's annotation names
    containerd_version: str
    strict: bool  # refuse a checkpoint that would come back different
    store: str = ""  # where memory is sent to while the rest is dumped
    decided: dict[str, str] = {}  # noqa: RUF012  annotations that count instead of the pod's own


class Context(NamedTuple):
    """A checkpoint that is being taken."""

    order: Order
    config: Config
    final_dir: str  # the checkpoint, once it is sealed
    tool: Runc
    driver: Driver | None
    journal: Journal[Step]
    timeline: Timeline
    containers: tuple[RunningContainer, ...]  # the running ones of the order

    @property
    def staging_dir(self) -> str:
        """The checkpoint until it is sealed."""
        return f"{os.path.dirname(self.final_dir)}/.{self.order.name}.{self.tool.token}"

    @property
    def memory_dir(self) -> str:
        """Memory taken from processes; its files have a second name in the checkpoint later."""
        return f"{self.staging_dir}.memory"

    @property
    def work_dir(self) -> str:
        """What CRIU writes besides the images."""
        return f"{journal.PODS_DIR}/{self.order.pod.sandbox_id}/{journal.DUMP}"
