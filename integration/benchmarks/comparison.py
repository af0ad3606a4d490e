"""What a comparison is made of: rows, the node that they are measured on, pairs that take turns."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from integration.kubernetes import cluster, grit, many
from integration.node import rootfs
from integration.node.bare import BareNode
from integration.node.network import Network
from integration.node.node import Node
from integration.pods import kubelet, workload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from integration.kubernetes.cluster import Cluster
    from integration.kubernetes.many import Many
    from integration.pods.kubelet import Pod


class Row(NamedTuple):
    """One comparison; *bound* is what the hardware allows, where that is known."""

    name: str
    ours: float
    theirs: float
    ratio: float
    limit: float | None
    bound: float | None
    unit: str


class Side(NamedTuple):
    """One way to do a thing on a node: the timed calls, and shell around them."""

    calls: Sequence[Sequence[str]]
    before: str = ""
    after: str = ""
    directory: str = "/"


class Times(NamedTuple):
    """What the calls of both sides took, in seconds."""

    ours: list[float]
    theirs: list[float]


class Bench:
    """A node with a running pod, made when the first row needs it."""

    def __enter__(self) -> Bench:
        self._stack = ExitStack()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cached_property
    def _network(self) -> Network:
        return self._stack.enter_context(Network())

    @cached_property
    def node(self) -> Node:
        node = Node(rootfs.EDITIONS["forky"], name="bench", network=self._network)
        return self._stack.enter_context(node)

    @cached_property
    def other_node(self) -> Node:
        node = Node(rootfs.EDITIONS["forky"], name="other", network=self._network)
        return self._stack.enter_context(node)

    @cached_property
    def bare_node(self) -> BareNode:
        """One that has grit's package and nothing else of it."""
        node = BareNode(rootfs.EDITIONS["forky"], name="bare", network=self._network)
        self._stack.enter_context(node)
        node.restart_containerd()
        return node

    @cached_property
    def counter(self) -> Pod:
        spec = workload.counter_pod("bench", ballast_mib=5)
        pod = self._stack.enter_context(kubelet.running(self.node, spec))
        workload.wait_for_count(pod, 5)
        return pod

    @cached_property
    def cluster(self) -> Cluster:
        """Two nodes, with grit."""
        running = self._stack.enter_context(cluster.running(rootfs.EDITIONS["forky"]))
        self._stack.enter_context(grit.installed(running, self._log("cluster")))
        return running

    @cached_property
    def many(self) -> Many:
        """A control plane, and nodes in name only."""
        return self._stack.enter_context(many.running(self._log("many")))

    def _log(self, name: str) -> Path:
        directory = tempfile.TemporaryDirectory(prefix=f"bench-{name}-")
        return Path(self._stack.enter_context(directory)) / "manager.log"

    def pairs(self, count: int, *, ours: Side, theirs: Side) -> tuple[float, float]:
        """Median seconds of both sides."""
        taken = self.times(count, ours=ours, theirs=theirs)
        return statistics.median(taken.ours), statistics.median(taken.theirs)

    def times(self, count: int, *, ours: Side, theirs: Side) -> Times:
        """Seconds of both sides, each as often as *count*."""
        asked = {"pairs": count, "ours": ours._asdict(), "theirs": theirs._asdict()}
        script = Path(__file__).with_name("alternating_timer.py").read_text()
        python = f"/usr/bin/python{self.node.edition.python}"
        done = self.node.run([python, "-c", script], input=json.dumps(asked), timeout_s=600)
        return Times(**json.loads(done.stdout))


def bar_row(name: str, seconds: float, bar_s: float) -> Row:
    """A row without another program: the bar stands in its place."""
    return Row(name, seconds, bar_s, seconds / bar_s, 1.0, None, "s")


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def allowance_row(name: str, ours: float, theirs: float, allowance_s: float) -> Row:
    return Row(name, ours, theirs, ours / theirs, (theirs + allowance_s) / theirs, None, "s")


def ratio_row(
    name: str, ours: float, theirs: float, limit: float | None, *, unit: str = "s"
) -> Row:
    return Row(name, ours, theirs, ours / theirs, limit, None, unit)
