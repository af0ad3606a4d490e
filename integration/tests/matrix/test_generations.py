"""One pod that moves again and again, and one checkpoint that many pods go on from."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from integration.pods import checkpoints, kubelet, workload
from integration.tests.matrix import cases

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

GENERATIONS = 5
CLONES = 20


@pytest.mark.case("five moves, one log without a gap", cases.RESTORED)
def test_a_pod_moves_five_times_and_its_log_has_no_gap(nodes: Nodes, run_pod: RunPod) -> None:
    here, there = nodes
    pod = run_pod(here, workload.counter_pod("generation-0"))
    workload.wait_for_count(pod, 3)
    for number in range(1, GENERATIONS + 1):
        name = f"generation-{number}"
        checkpoints.take(pod, name, "--after", "frozen")
        checkpoints.carry(here, there, name)
        pod.stop(grace_period_s=0)
        pod.remove()
        here, there = there, here
        asking = (("grit.dev/restore-name", name),)
        pod = run_pod(here, workload.counter_pod(name, annotations=asking))
        workload.wait_for_count(pod, 3 + 5 * number)
    counted = workload.counts(pod).logged
    assert counted == list(range(1, len(counted) + 1))


@pytest.mark.case("twenty pods from one checkpoint on one node", cases.RESTORED)
def test_many_pods_go_on_from_one_checkpoint(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, workload.counter_pod("many"))
    workload.wait_for_count(source, 3)
    cases.move(nodes, source, "many")
    asking = (("grit.dev/restore-name", "many"), ("grit.dev/clone", "true"))
    with ExitStack() as pods:
        clones = [
            pods.enter_context(
                kubelet.running(nodes.b, workload.counter_pod(f"many-{number}", annotations=asking))
            )
            for number in range(CLONES)
        ]
        for pod in clones:
            workload.wait_for_count(pod, 5)
