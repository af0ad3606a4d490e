"""One state goes on once on a node, unless two are said to be meant."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from integration.node.cri import CriError
from integration.pods import checkpoints, kubelet, workload
from integration.tests.matrix import cases
from integration.tests.matrix.test_restart import outcomes, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.pods.kubelet import Pod
    from integration.pods.pod_spec import PodSpec
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

CLONE = {"clone": "true"}


def counter(name: str, **asked: str) -> PodSpec:
    annotations = tuple((f"grit.dev/{k.replace('_', '-')}", v) for k, v in asked.items())
    return workload.counter_pod(name, annotations=annotations)


@pytest.fixture(scope="module")
def checkpoint(nodes: Nodes, fresh_nodes: None) -> Path:  # noqa: ARG001 -- emptied before
    """The directory on node B of a checkpoint of a counter that is gone."""
    source = kubelet.run_pod(nodes.a, counter("one-a"))
    workload.wait_for_count(source, 20)
    cases.move(nodes, source, "one")
    return checkpoints.directory(nodes.b, "one")


@pytest.mark.case("beside the running pod that it was taken of", cases.REFUSED)
def test_a_pod_is_not_restored_beside_the_one_that_runs_on(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, counter("beside-source"))
    workload.wait_for_count(source, 20)
    checkpoints.take(source, "beside")
    with kubelet.sandbox(nodes.a, counter("beside-target", restore_name="beside")) as target:
        reason = refused(target, "counter")
        assert "pod default/beside-source, of which checkpoint" in reason
        assert "runs on this node and is not held" in reason
        assert 'say grit.dev/clone: "true"' in reason
        source.stop(grace_period_s=0)
        target.restart("counter")
        assert outcomes(target)[-1] == ("counter", "restored")


@pytest.mark.case("beside the held pod that it was taken of", cases.RESTORED)
def test_a_pod_is_restored_beside_the_held_one_which_is_not_resumed_meanwhile(
    nodes: Nodes, run_pod: RunPod
) -> None:
    source = run_pod(nodes.a, counter("held-source"))
    workload.wait_for_count(source, 20)
    checkpoints.take(source, "held", "--after", "frozen")
    target = run_pod(nodes.a, counter("held-target", restore_name="held"))
    assert outcomes(target) == [("counter", "restored")]
    resume = ["grit", "resume", "default/held-source"]
    told = nodes.a.run(resume, check=False).stderr
    assert "is not resumed: pod default/held-target on this node goes on from" in told
    target.stop(grace_period_s=0)
    assert nodes.a.run(resume).stdout == "container counter runs on\n"


@pytest.mark.case("a clone beside the running pod", cases.RESTORED)
def test_a_clone_goes_on_beside_its_source(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, counter("clone-source"))
    workload.wait_for_count(source, 20)
    checkpoints.take(source, "cloned")
    clone = run_pod(nodes.a, counter("clone", restore_name="cloned", **CLONE))
    assert outcomes(clone) == [("counter", "restored")]


@pytest.mark.case("a second pod from the same checkpoint", cases.REFUSED)
@pytest.mark.usefixtures("checkpoint")
def test_a_second_pod_waits_until_the_first_has_ended(nodes: Nodes, run_pod: RunPod) -> None:
    first = run_pod(nodes.b, counter("first", restore_name="one"))
    with kubelet.sandbox(nodes.b, counter("second", restore_name="one")) as second:
        reason = refused(second, "counter")
        assert "pod default/first on this node goes on from checkpoint" in reason
        first.stop(grace_period_s=0)
        second.restart("counter")
        assert outcomes(second)[-1] == ("counter", "restored")
        third = run_pod(nodes.b, counter("third", restore_name="one", **CLONE))
        assert outcomes(third) == [("counter", "restored")]


@pytest.mark.case("beside a pod that is ending", cases.RESTORED)
def test_a_pod_that_is_ending_is_waited_for(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, counter("ending-source"))
    workload.wait_for_count(source, 20)
    checkpoints.take(source, "ending")
    with (
        kubelet.sandbox(nodes.a, counter("ending-target", restore_name="ending")) as target,
        ThreadPoolExecutor(1) as pool,
    ):
        target.create("counter")
        starting = pool.submit(target.start, "counter")
        attempts = nodes.a.path(Path("/run/grit/pods") / target.sandbox_id)
        while not (starting.done() or list(attempts.glob("*/attempt.journal"))):
            time.sleep(kubelet.POLL_S)
        source.stop(grace_period_s=0)
        starting.result()
        assert outcomes(target) == [("counter", "restored")]


@pytest.mark.case("two replicas of a template at once", cases.REFUSED)
@pytest.mark.usefixtures("checkpoint")
def test_of_two_pods_at_once_one_goes_on(nodes: Nodes) -> None:
    def start(pod: Pod) -> str:
        try:
            pod.start("counter")
        except CriError as error:
            return error.details
        return "started"

    with (
        kubelet.sandbox(nodes.b, counter("replica-1", restore_name="one")) as one,
        kubelet.sandbox(nodes.b, counter("replica-2", restore_name="one")) as other,
        ThreadPoolExecutor(2) as pool,
    ):
        for pod in (one, other):
            pod.create("counter")
        told = list(pool.map(start, (one, other)))
    told.remove("started")
    assert "goes on from checkpoint" in told[0]


@pytest.mark.case("a manifest that is pinned, and another", cases.REFUSED)
def test_only_the_very_checkpoint_that_is_pinned_is_restored(
    nodes: Nodes, run_pod: RunPod, checkpoint: Path
) -> None:
    digest = hashlib.sha256((checkpoint / "manifest.json").read_bytes()).hexdigest()
    pinned = counter("pinned", restore_name="one", manifest_digest=f"sha256:{digest}")
    pod = run_pod(nodes.b, pinned)
    assert outcomes(pod) == [("counter", "restored")]
    pod.stop(grace_period_s=0)
    other = "0" * 64
    with kubelet.sandbox(
        nodes.b, counter("unpinned", restore_name="one", manifest_digest=f"sha256:{other}")
    ) as pod:
        reason = refused(pod, "counter")
        assert f"its manifest is sha256:{digest}, expected sha256:{other}" in reason


def test_a_key_of_a_later_version_stops_no_pod_unless_it_changes_its_restore(
    nodes: Nodes, run_pod: RunPod
) -> None:
    pod = run_pod(nodes.a, counter("later", migration_of="cart-6"))
    workload.wait_for_count(pod, 3)
    told = nodes.a.path(Path("/var/log/grit/runtime.log")).read_text()
    assert "grit.dev/migration-of" in told
    with kubelet.sandbox(nodes.a, counter("much-later", restore_from="elsewhere")) as pod:
        assert "annotation grit.dev/restore-from is unknown" in refused(pod, "counter")
