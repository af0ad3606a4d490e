"""The plainest pod."""

from __future__ import annotations

import pytest

from integration.pods import workload
from integration.tests.matrix import cases

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")


@pytest.mark.case("a process that counts", cases.RESTORED)
def test_a_count_goes_on(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, workload.counter_pod("plain"))
    workload.wait_for_count(source, 5)
    cases.move(nodes, source, "plain")
    annotations = (("grit.dev/restore-name", "plain"),)
    target = run_pod(nodes.b, workload.counter_pod("plain", annotations=annotations))
    workload.assert_goes_on_from(target, 5, node=nodes.b)
