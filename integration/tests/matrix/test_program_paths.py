"""Who calls grit need not have the node's PATH: an agent from its own image has not."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.node.node import RUNC
from integration.pods import checkpoints, workload
from integration.tests.matrix import cases

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.node.node import Node
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

CONFIG = Path("/etc/grit/config.toml")
ELSEWHERE = Path("/opt/tools")
POOR = ["env", f"PATH={ELSEWHERE}"]
CHECKPOINT = ["/usr/local/bin/grit", "checkpoint", "default/poor", "--name", "poor", "--replace"]


HIDE = """
mkdir /opt/criu
mv /usr/sbin/criu /opt/criu/real
sed s,/usr/sbin/criu,/opt/criu/real, /usr/local/sbin/criu > /opt/criu/criu
chmod 755 /opt/criu/criu
mv /usr/local/sbin/criu /opt/criu/launcher
mkdir -p /etc/grit
"""
SHOW = """
mv /opt/criu/launcher /usr/local/sbin/criu
mv /opt/criu/real /usr/sbin/criu
rm -rf /opt/criu /etc/grit/config.toml
"""


@pytest.fixture
def poor(nodes: Nodes) -> Iterator[Node]:
    """Node A, on which criu lies where no PATH leads."""
    nodes.a.run(["sh", "-ec", HIDE])
    yield nodes.a
    nodes.a.run(["sh", "-ec", SHOW])


def configure(node: Node, **paths: str) -> None:
    node.path(CONFIG).write_text("".join(f'{name} = "{path}"\n' for name, path in paths.items()))


@pytest.mark.case("runc and criu found by their configured paths alone", cases.RESTORED)
def test_runc_and_criu_are_found_where_the_configuration_says(poor: Node, run_pod: RunPod) -> None:
    pod = run_pod(poor, workload.counter_pod("poor"))
    workload.wait_for_count(pod, 5)
    told = poor.run([*POOR, *CHECKPOINT], check=False).stderr
    assert f"criu not found in {ELSEWHERE}:/usr/local/sbin:" in told
    assert f"; install it or set criu in {CONFIG}" in told
    configure(poor, criu="/opt/criu/criu", runc="/opt/runc")
    told = poor.run([*POOR, *CHECKPOINT], check=False).stderr
    assert f"runc not found at /opt/runc; install it or set runc in {CONFIG}" in told
    configure(poor, criu="/opt/criu/criu", runc=RUNC)
    poor.run([*POOR, *CHECKPOINT])
    pod.stop(grace_period_s=0)
    asked = (("grit.dev/restore-name", "poor"),)
    target = run_pod(poor, workload.counter_pod("poor-b", annotations=asked))
    workload.wait_for_count(target, 20)
    assert [one["outcome"] for one in checkpoints.outcomes(target)] == ["restored"]
