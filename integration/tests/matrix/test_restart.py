"""A checkpoint is restored once, and what cannot be restored fails or, where asked, starts cold."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.node import images
from integration.node.cri import CriError
from integration.pods import checkpoints, kubelet, workload
from integration.pods.pod_spec import ContainerSpec, PodSpec
from integration.tests.matrix import cases

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.pods.kubelet import Pod
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")


def pair_pod(name: str, **annotations: str) -> PodSpec:
    """Two containers that count."""
    return PodSpec(
        name=name,
        containers=tuple(
            ContainerSpec(
                name=container,
                image=images.PYTHON,
                command=("/usr/bin/python3", "-c", workload.COUNTER, "1"),
            )
            for container in ("first", "second")
        ),
        annotations=tuple(
            (f"grit.dev/{key.replace('_', '-')}", value) for key, value in annotations.items()
        ),
    )


@pytest.fixture(scope="module")
def checkpoint(nodes: Nodes, fresh_nodes: None) -> Path:  # noqa: ARG001 -- emptied before
    """The directory on node B of a checkpoint of the pair, taken at 30 or later."""
    with kubelet.running(nodes.a, pair_pod("pair-a")) as source:
        for name in ("first", "second"):
            source.wait_for_log(name, "\n30\n")
            source.exec_sync(name, ["/bin/touch", "/marker"])
        checkpoints.take(source, "pair")
    return checkpoints.carry(nodes.a, nodes.b, "pair")


@pytest.fixture
def broken(checkpoint: Path) -> Iterator[Path]:
    """The checkpoint, sealed, without an image of the second container that CRIU looks for late."""
    lost, manifest = (
        checkpoint / name for name in ("second/checkpoint/pagemap-1.img", "manifest.json")
    )
    kept = [(path, path.read_bytes()) for path in (lost, manifest)]
    lost.unlink()
    checkpoints.seal_anew(checkpoint)
    yield checkpoint
    for path, content in kept:
        path.write_bytes(content)


def started(pod: Pod, *names: str) -> None:
    for name in names:
        pod.create(name)
        pod.start(name)


def refused(pod: Pod, name: str) -> str:
    pod.create(name)
    with pytest.raises(CriError) as caught:
        pod.start(name)
    return caught.value.details


def outcomes(pod: Pod) -> list[tuple[object, object]]:
    return [(one["container"], one["outcome"]) for one in checkpoints.outcomes(pod)]


def assert_restored(pod: Pod, name: str) -> None:
    log = pod.wait_for_log(name, "\n60\n")
    assert [int(line) for line in log.split()[:60]] == list(range(1, 61))
    assert pod.exec_sync(name, ["/bin/ls", "/marker"]).exit_code == 0
    assert outcomes(pod)[-1] == (name, "restored")


def assert_cold(pod: Pod, name: str, reason: str) -> None:
    """The container began from its image alone, and its log and its record say so."""
    # runc may have complained first, on the standard error that is the container's
    lines = pod.wait_for_log(name, "\n3\n").splitlines()
    counted = [line for line in lines if line.isdigit()]
    assert counted[:3] == ["1", "2", "3"]
    assert pod.exec_sync(name, ["/bin/ls", "/marker"]).exit_code != 0
    last = checkpoints.outcomes(pod)[-1]
    assert (last["container"], last["outcome"]) == (name, "cold")
    assert reason in str(last["reason"])
    assert reason in pod.node.run(["grit", "status", f"default/{pod.spec.name}"]).stdout
    log = pod.node.path(Path(f"/var/log/grit/default/{pod.spec.name}/{name}/grit.log")).read_text()
    assert 'msg="starting cold"' in log
    assert reason in log


@pytest.mark.case("a second pod from the same checkpoint, where asked", cases.RESTORED)
@pytest.mark.usefixtures("checkpoint")
def test_a_checkpoint_can_be_restored_in_a_second_pod(nodes: Nodes, run_pod: RunPod) -> None:
    for name in ("one", "two"):
        pod = run_pod(nodes.b, pair_pod(name, restore_name="pair", clone="true"))
        assert outcomes(pod) == [("first", "restored"), ("second", "restored")]
        assert_restored(pod, "second")


@pytest.mark.case("a container that ends after its restore", cases.COLD)
def test_a_restart_is_cold_whether_or_not_the_checkpoint_is_still_there(
    nodes: Nodes, run_pod: RunPod, checkpoint: Path
) -> None:
    pod = run_pod(nodes.b, pair_pod("ends", restore_name="pair"))
    nodes.b.run(["kill", "-KILL", str(pod.pid("first"))])
    pod.wait_exited("first")
    pod.restart("first")
    assert_cold(pod, "first", "it was restored from this checkpoint before")
    pod.stop_container("second", grace_period_s=0)
    away = checkpoint.rename(checkpoint.with_name("away"))
    try:
        pod.restart("second")
    finally:
        away.rename(checkpoint)
    assert_cold(pod, "second", "it was restored from this checkpoint before")


@pytest.mark.case("a restored pod after its node's reboot", cases.COLD)
@pytest.mark.usefixtures("broken")
def test_after_a_reboot_all_of_the_pod_is_cold(nodes: Nodes) -> None:
    spec = pair_pod("reboot", restore_name="pair")
    with kubelet.sandbox(nodes.b, spec) as pod:
        started(pod, "first")
        assert "restore of container" in refused(pod, "second")
        pod.stop(grace_period_s=0)
        pod.remove()
    nodes.b.run(["rm", "-rf", "/run/grit"])
    with kubelet.running(nodes.b, spec) as pod:
        assert_cold(pod, "second", "container first of the pod was restored from this checkpoint")
        assert outcomes(pod) == [
            *(("first", "restored"), ("second", "failed")),
            *(("first", "cold"), ("second", "cold")),
        ]


@pytest.mark.case("a restore that failed, tried again", cases.RESTORED)
def test_a_failed_attempt_does_not_use_the_checkpoint_up(nodes: Nodes, checkpoint: Path) -> None:
    away = checkpoint.rename(checkpoint.with_name("away"))
    with kubelet.sandbox(nodes.b, pair_pod("again", restore_name="pair")) as pod:
        assert "does not exist on this node" in refused(pod, "first")
        away.rename(checkpoint)
        pod.restart("first")
        assert_restored(pod, "first")
        (failed, _) = checkpoints.outcomes(pod)
        assert failed["outcome"] == "failed"
        assert "does not exist on this node" in str(failed["reason"])


COLD_START = {"restore_name": "pair", "on_failure": "cold-start"}


@pytest.mark.case("on-failure: cold-start, CRIU fails half way", cases.COLD)
@pytest.mark.usefixtures("broken")
def test_where_asked_a_pod_whose_restore_fails_starts_cold(nodes: Nodes) -> None:
    with kubelet.sandbox(nodes.b, pair_pod("asked", **COLD_START)) as pod:
        started(pod, "second")
        assert_cold(pod, "second", "restore of container")
        started(pod, "first")
        assert_cold(pod, "first", "container second of the pod was started cold")
        assert checkpoints.left_by_restores(pod) == [
            line for line in checkpoints.left_by_restores(pod) if line.endswith("cgroup.procs")
        ]


@pytest.mark.case("on-failure: cold-start beside a restored container", cases.REFUSED)
@pytest.mark.usefixtures("broken")
def test_beside_a_restored_container_none_starts_cold(nodes: Nodes) -> None:
    with kubelet.sandbox(nodes.b, pair_pod("beside", **COLD_START)) as pod:
        started(pod, "first")
        assert "container first of the pod was restored" in refused(pod, "second")
        assert outcomes(pod) == [("first", "restored"), ("second", "failed")]
