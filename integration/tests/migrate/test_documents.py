"""The commands of the documents do what the documents say, as they stand there."""

from __future__ import annotations

import re
import shlex

import pytest

from integration.documents import REPO, documented
from integration.pods import checkpoints, workload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.tests.conftest import Nodes, RunPod


@pytest.fixture(autouse=True)
def no_checkpoints(nodes: Nodes) -> None:
    """Each document begins with nodes that have none."""
    for node in nodes:
        node.run(["sh", "-c", "rm -rf /mnt/grit-agent/*"])


def test_five_commands_move_a_pod(nodes: Nodes, run_pod: RunPod) -> None:
    apply, checkpoint, copy, apply_again, delete = documented("five commands")
    assert apply == "kubectl apply -f counter.yaml"
    source = run_pod(nodes.a, workload.counter_pod("counter"))
    workload.wait_for_count(source, 20)
    path = nodes.a.run(shlex.split(checkpoint)).stdout.strip()
    assert copy == f"rsync -a --mkpath {path} node-b:{path.rpartition('/')[0]}/"
    name = path.rpartition("/")[2]
    there = checkpoints.carry(nodes.a, nodes.b, name)
    counted = len((there / "counter/container.log").read_text().splitlines())
    assert apply_again == "kubectl apply -f counter-2.yaml"
    annotation = re.search(r"(grit\.dev/restore-name): (\S+)", (REPO / "README.md").read_text())
    assert annotation
    assert annotation[2] == name
    spec = workload.counter_pod("counter-2", annotations=((annotation[1], annotation[2]),))
    target = run_pod(nodes.b, spec)
    assert delete == "kubectl delete pod counter"
    source.stop()
    source.remove()
    workload.assert_goes_on_from(target, counted, node=nodes.b)


def test_a_checkpoint_is_taken_looked_at_and_read(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, workload.counter_pod("counter"))
    workload.wait_for_count(source, 5)
    _, inspected, verified, status = [
        nodes.a.run(shlex.split(line)).stdout for line in documented("take")
    ]
    assert "paused" in inspected
    assert "as sealed" in verified
    assert "sealed" in status


def test_a_restore_is_shown_before_it_is_tried(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, workload.counter_pod("counter"))
    workload.wait_for_count(source, 5)
    checkpoints.take(source, "nightly")
    checkpoints.carry(nodes.a, nodes.b, "nightly")
    run_pod(nodes.b, workload.counter_pod("other-pod"))
    (line,) = documented("against")
    assert "/scratch" in nodes.b.run(shlex.split(line)).stdout
