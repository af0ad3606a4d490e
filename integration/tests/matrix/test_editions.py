"""From a node of one edition to a node of the other, whose containerd, runc and CRIU are others."""

from __future__ import annotations

import pytest

from integration.node import images, rootfs
from integration.node.node import Node
from integration.pods import checkpoints, kubelet
from integration.pods.pod_spec import ContainerSpec, EmptyDir, PodSpec, VolumeMount
from integration.tests.conftest import Nodes
from integration.tests.matrix import cases

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.node.network import Network
    from integration.node.rootfs import Edition
    from integration.tests.conftest import RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

# Of this machine's busybox, which is the same on both: python is each edition's own.
COUNT = """
i=0
while :; do i=$((i + 1)); echo $i >/count; echo $i >/dev/shm/count; echo count $i; sleep 0.05; done
"""


@pytest.fixture(scope="module")
def between(nodes: Nodes, edition: Edition, network: Network) -> Iterator[Nodes]:
    """Node A, and a node of the other edition in the place of B."""
    (other,) = (one for one in rootfs.EDITIONS.values() if one != edition)
    with Node(other, name="node-c", network=network) as c:
        yield Nodes(nodes.a, c)


def spec(name: str, *annotations: tuple[str, str]) -> PodSpec:
    counter = ContainerSpec(
        name="counter",
        image=images.BUSYBOX,
        command=("/bin/sh", "-c", COUNT),
        mounts=(VolumeMount("scratch", "/scratch"),),
    )
    return PodSpec(
        name=name, containers=(counter,), volumes=(EmptyDir("scratch"),), annotations=annotations
    )


# forky's CRIU is the newer.
@pytest.mark.case(
    "to a node of the other edition", {"forky": cases.REFUSED, "trixie": cases.RESTORED}
)
def test_a_newer_criu_takes_what_an_older_one_dumped(
    edition: Edition, between: Nodes, run_pod: RunPod
) -> None:
    source = run_pod(between.a, spec("abroad-a"))
    source.wait_for_log("counter", "count 5\n")
    cases.move(between, source, "abroad")
    abroad = spec("abroad-b", ("grit.dev/restore-name", "abroad"))
    dumped = checkpoints.read(checkpoints.directory(between.b, "abroad")).node
    assert dumped.criu in between.a.run(["criu", "--version"]).stdout
    if edition.suite == "forky":
        reason = cases.refusal(between, abroad)
        assert f"was dumped by CRIU {dumped.criu}, this node has " in reason
        assert f"install CRIU {dumped.criu} or newer here" in reason
        return
    with kubelet.running(between.b, abroad) as target:
        log = target.wait_for_log("counter", "count 40\n")
        counted = [int(line.split()[1]) for line in log.splitlines()]
        assert counted == list(range(1, len(counted) + 1))
