"""A pod held for its checkpoint: it never starts cold beside what goes on elsewhere."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from integration.node.cri import CriError
from integration.node.node import HANDLER, SHIM_HANDLER
from integration.pods import checkpoints, kubelet, workload
from integration.tests.matrix import cases
from integration.tests.matrix.test_restart import outcomes, pair_pod, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.pods.kubelet import Pod
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

GRACE_PERIOD_S = 30
AT_ONCE_S = 10


def held(pod: Pod, name: str) -> None:
    """Have *pod* count a little, and held for a checkpoint of it."""
    workload.wait_for_count(pod, 20)
    checkpoints.take(pod, name, "--after", "frozen")


def stop_as_kubelet_does(pod: Pod, container: str) -> float:
    """What a liveness probe that fails leads to, and a deletion; how long it took, in seconds."""
    begin = time.monotonic()
    pod.stop_container(container, grace_period_s=GRACE_PERIOD_S)
    return time.monotonic() - begin


def resumed(pod: Pod) -> str:
    target = f"{pod.spec.namespace}/{pod.spec.name}"
    return pod.node.run(["grit", "resume", target]).stdout


def holds(pod: Pod) -> list[str]:
    return [str(one["reason"]) for one in checkpoints.outcomes(pod) if one["outcome"] == "held"]


def goes_on(pod: Pod, count: int) -> None:
    """The newest log has the count from its beginning to *count* and beyond, with no gap."""
    log = pod.wait_for_log("counter", f"\n{count}\n")
    numbers = [int(line) for line in log.split()]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.case("held, killed by a liveness probe, resumed", cases.RESTORED)
@pytest.mark.parametrize("handler", [HANDLER, SHIM_HANDLER])
def test_a_held_container_that_is_killed_is_restored_where_it_was(
    nodes: Nodes, run_pod: RunPod, handler: str
) -> None:
    pod = run_pod(nodes.a, workload.counter_pod(f"probed-{handler}", runtime_handler=handler))
    held(pod, f"probed-{handler}")
    counted = len(pod.logs("counter").split())
    assert stop_as_kubelet_does(pod, "counter") < AT_ONCE_S
    assert pod.status("counter").exit_code == 137
    reason = refused(pod, "counter")
    assert f"held for checkpoint /mnt/grit-agent/default/probed-{handler}" in reason
    assert "run grit resume" in reason
    assert "delete the pod" in reason
    assert "container counter was killed and is restored" in resumed(pod)
    pod.restart("counter")
    goes_on(pod, counted + 20)
    assert outcomes(pod)[-1] == ("counter", "restored")
    assert checkpoints.left_by_checkpoints(nodes.a) == []
    pod.stop_container("counter", grace_period_s=0)
    pod.restart("counter")  # from its image, as whatever dies
    pod.wait_for_log("counter", "1\n")
    assert outcomes(pod)[-1] == ("counter", "restored")


@pytest.mark.case("held, its sandbox gone and made anew, resumed", cases.RESTORED)
def test_a_held_pod_in_a_new_sandbox_is_held_still(nodes: Nodes) -> None:
    with kubelet.running(nodes.a, workload.counter_pod("renewed")) as pod:
        pod.exec_sync("counter", ["/bin/sh", "-c", "echo kept > /dev/shm/kept"])
        held(pod, "renewed")
        pod.renew_sandbox()
        assert "held for checkpoint" in refused(pod, "counter")
        assert checkpoints.left_by_checkpoints(nodes.a) == []
        assert holds(pod) == ["held until grit resume, or the pod's deletion"]
        assert "is restored from" in resumed(pod)
        pod.restart("counter")
        goes_on(pod, 60)
        assert pod.exec_sync("counter", ["cat", "/dev/shm/kept"]).stdout == b"kept\n"
    assert holds(pod) == []


@pytest.mark.case("held, its node rebooted", cases.REFUSED)
def test_a_held_pod_outlives_its_nodes_reboot(nodes: Nodes) -> None:
    with kubelet.running(nodes.a, workload.counter_pod("rebooted")) as pod:
        held(pod, "rebooted")
        pod.stop(grace_period_s=0)
        nodes.a.run(["rm", "-rf", "/run/grit"])
        nodes.a.run(["grit", "recover"])
        pod.renew_sandbox()
        assert "held for checkpoint" in refused(pod, "counter")
        away = checkpoints.directory(nodes.a, "rebooted")
        away = away.rename(away.with_name("away"))
        gone = nodes.a.run(["grit", "resume", "default/rebooted"], check=False)
        assert "container counter was killed and is in checkpoint" in gone.stderr
        assert "does not exist on this node" in gone.stderr
        assert gone.returncode == 1
        away.rename(away.with_name("rebooted"))


@pytest.mark.case("two containers held, one killed, resumed", cases.RESTORED)
def test_of_a_held_pod_one_container_runs_on_and_the_killed_is_restored(
    nodes: Nodes, run_pod: RunPod
) -> None:
    pod = run_pod(nodes.a, pair_pod("half"))
    for name in ("first", "second"):
        pod.wait_for_log(name, "\n20\n")
    pod.exec_sync("first", ["/bin/sh", "-c", "echo old > /dev/shm/shared"])
    checkpoints.take(pod, "half", "--after", "frozen")
    stop_as_kubelet_does(pod, "second")
    told = resumed(pod).splitlines()
    assert told[0] == "container first runs on"
    assert told[1].startswith("container second was killed and is restored from")
    again = checkpoints.take(pod, "again", check=False)
    assert "container second has not been restored yet" in again.stderr
    pod.exec_sync("first", ["/bin/sh", "-c", "echo new > /dev/shm/shared"])
    pod.restart("second")
    for name in ("first", "second"):
        log = [int(line) for line in pod.wait_for_log(name, "\n60\n").split()]
        assert log == list(range(1, len(log) + 1))
    assert pod.exec_sync("second", ["cat", "/dev/shm/shared"]).stdout == b"new\n"
    assert holds(pod) == []
    checkpoints.take(pod, "again")


def test_a_held_pod_is_shown(nodes: Nodes, run_pod: RunPod) -> None:
    pod = run_pod(nodes.a, workload.counter_pod("shown"))
    held(pod, "shown")
    line = nodes.a.run(["grit", "status", "default/shown"]).stdout.splitlines()[-1]
    assert line.endswith(
        "held for /mnt/grit-agent/default/shown: held until grit resume, or the pod's deletion"
    )
    shown = checkpoints.outcomes(pod)[-1]
    assert (shown["outcome"], shown["pod"], shown["checkpoint"]) == (
        "held",
        "shown",
        "/mnt/grit-agent/default/shown",
    )
    assert line.startswith(str(shown["time"]))
    with pytest.raises(CriError, match="paused"):  # so a probe by exec has no answer, and no effect
        pod.exec_sync("counter", ["true"])
    resumed(pod)
    assert holds(pod) == []


@pytest.mark.case("held under the plain runc handler", cases.known_limit("its create is not ours"))
def test_what_cannot_be_protected_is_warned_of_and_leaves_nothing(nodes: Nodes) -> None:
    with kubelet.running(nodes.a, workload.counter_pod("plain", runtime_handler="runc")) as pod:
        workload.wait_for_count(pod, 5)
        told = checkpoints.take(pod, "plain", "--after", "frozen").stderr
        assert "container counter is not run by grit-runtime" in told
    with kubelet.running(nodes.a, workload.counter_pod("bystander")) as bystander:
        bystander.stop_container("counter", grace_period_s=0)  # a kill on the node
        assert checkpoints.left_by_checkpoints(nodes.a) == []


def test_a_probe_over_the_network_is_warned_of_where_it_can_be_known(
    nodes: Nodes, run_pod: RunPod
) -> None:
    applied = {"spec": {"containers": [{"name": "counter", "livenessProbe": {"httpGet": {}}}]}}
    annotation = ("kubectl.kubernetes.io/last-applied-configuration", json.dumps(applied))
    pod = run_pod(nodes.a, workload.counter_pod("applied", annotations=(annotation,)))
    workload.wait_for_count(pod, 5)
    told = checkpoints.take(pod, "applied", "--after", "frozen").stderr
    assert "container counter has a livenessProbe by httpGet" in told


@pytest.mark.case("held by an older version, resumed after an upgrade", cases.RESTORED)
def test_a_pod_that_an_older_version_holds_is_resumed(nodes: Nodes, run_pod: RunPod) -> None:
    pod = run_pod(nodes.a, workload.counter_pod("older"))
    held(pod, "older")
    # Which had no other record of it than the journal.
    journal = nodes.a.path(Path(checkpoints.journal(pod)))
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(line for line in lines if '"step": "hold"' not in line))
    nodes.a.path(Path("/var/lib/grit/held") / pod.spec.uid).unlink()
    assert "container counter runs on" in resumed(pod)
    goes_on(pod, 30)
