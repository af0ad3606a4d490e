"""Claims whose volume is no directory of the nodes: kubelet mounts it, for a pod of the manager's.

Volumes of a network are none that this machine has. A FlexVolume stands in for them: its driver is
called by kubelet, as a CSI driver would be, and mounts what both nodes share; what one node may
have at a time it mounts once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grit_runtime.manager import carriers
from grit_runtime.manager.api import CHECKPOINTED, RESTORED, SUCCEEDED
from integration.kubernetes import grit, pods
from integration.kubernetes.cluster import NODES
from integration.kubernetes.objects import (
    KINDS,
    assert_counts_on,
    assert_goes_on,
    assert_runs_on,
    cordoned,
    evict,
    full,
    living,
    made,
    reached,
    started,
    uids,
    until,
)
from integration.node import volume

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.kubernetes.cluster import Cluster
    from integration.kubernetes.grit import Manager

SOURCE, TARGET = NODES
SHARED = Path("/srv/shared")  # where the nodes have what the driver mounts
DRIVERS = "/usr/libexec/kubernetes/kubelet-plugins/volume/exec"
INSTALL = f"""
mkdir -p /srv/bind {DRIVERS}
cat >/srv/bind/bind
chmod 755 /srv/bind/bind
mv /srv/bind {DRIVERS}/grit.dev~bind
"""
DRIVER = """\
#!/bin/sh
case $1 in
init) echo '{"status": "Success", "capabilities": {"attach": false}}' ;;
mount)
    source=$(echo "$3" | sed 's/.*"source":"\\([^"]*\\)".*/\\1/')
    case $3 in *'"once"'*)
        if ! mkdir "$source/.once" 2>/dev/null; then
            echo '{"status": "Failure", "message": "another node has it"}'
            exit
        fi ;;
    esac
    if mkdir -p "$2" && mount --bind "$source" "$2" 2>/dev/null; then
        echo '{"status": "Success"}'
    else
        echo '{"status": "Failure", "message": "no such export"}'
    fi ;;
unmount) rmdir "$2/.once" 2>/dev/null; umount "$2" && echo '{"status": "Success"}' ;;
*) echo '{"status": "Not supported"}' ;;
esac
"""

pytestmark = pytest.mark.usefixtures("manager")


@pytest.fixture(scope="module")
def shared(kubernetes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What is behind the volume; both nodes have its driver."""
    directory = tmp_path_factory.mktemp("shared")
    for node in kubernetes.nodes:
        volume.mount(directory, node, SHARED)
        node.run(["sh", "-euc", INSTALL], input=DRIVER)
    yield directory
    for node in kubernetes.nodes:
        node.run(["rm", "-r", f"{DRIVERS}/grit.dev~bind"])
        node.run(["umount", "--lazy", str(SHARED)])


@pytest.fixture
def name(kubernetes: Cluster, name: str, alone: None, shared: Path) -> Iterator[str]:  # noqa: ARG001
    """A name for what a test makes, with its claims."""
    yield name
    kubernetes.kubectl("delete", "pvc,pv", "--all", "--wait=false")


def flex(source: Path, **options: str) -> dict[str, Any]:
    """A volume of the driver's."""
    told = {"source": str(source), **options}
    return {"flexVolume": {"driver": "grit.dev/bind", "options": told}}


def claimed(
    kubernetes: Cluster,
    name: str,
    behind: dict[str, Any],
    mode: str = "Filesystem",
    access: str = "ReadWriteMany",
) -> dict[str, Any]:
    """A claim of that name, bound to what is *behind* it: storage for a Checkpoint."""
    spec = {"accessModes": [access], "storageClassName": name, "volumeMode": mode}
    capacity = {"storage": "1Gi"}
    kubernetes.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": f"{name}-pv"},
            "spec": {**spec, **behind, "capacity": capacity},
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name},
            "spec": {**spec, "resources": {"requests": capacity}},
        },
    )
    until("it is bound", lambda: kubernetes.get("pvc", name)["status"].get("phase") == "Bound")
    return {"claimName": name}


def carrying(kubernetes: Cluster) -> list[str]:
    """The carriers that are there."""
    found = kubernetes.get("pods", "-l", f"{carriers.LABEL}={carriers.CARRIER}")["items"]
    return [one["metadata"]["name"] for one in found]


def test_a_checkpoint_goes_by_the_claim_to_another_node(
    kubernetes: Cluster, name: str, shared: Path
) -> None:
    storage = claimed(kubernetes, name, flex(SHARED))
    with cordoned(kubernetes, TARGET):
        pod = started(kubernetes, pods.counter(name))
    kubernetes.apply(made("Checkpoint", name, podName=pod, storage=storage))
    status = grit.ended(kubernetes, "checkpoint", name, CHECKPOINTED)
    assert status["phase"] == CHECKPOINTED, status
    assert status["dataPath"] == f"{name}-pv://default/{name}"
    assert len([*(shared / "checkpoints/default" / name).iterdir()]) == 1
    until("its carrier has gone", lambda: not carrying(kubernetes))
    selector = {"matchLabels": {"app": f"{name}-new"}}
    kubernetes.apply(made("Restore", name, checkpointName=name, selector=selector))
    with cordoned(kubernetes, SOURCE):
        kubernetes.apply(pods.counter(f"{name}-new"))
        status = grit.ended(kubernetes, "restore", name, RESTORED)
    assert (status["phase"], status["nodeName"]) == (RESTORED, TARGET), status
    assert_goes_on(kubernetes, f"{name}-new")
    until("its carrier has gone", lambda: not carrying(kubernetes))


def test_a_manager_that_is_killed_goes_on_with_the_carrier(
    kubernetes: Cluster, manager: Manager, name: str, shared: Path
) -> None:
    storage = claimed(kubernetes, name, flex(SHARED))
    pod = started(kubernetes, pods.counter(name))
    kubernetes.apply(made("Checkpoint", name, podName=pod, storage=storage))
    reached(kubernetes, "checkpoint", name, "Checkpointing")
    manager.kill()
    status = grit.ended(kubernetes, "checkpoint", name, CHECKPOINTED)
    assert status["phase"] == CHECKPOINTED, status
    assert (shared / "checkpoints/default" / name).exists()
    until("its carrier has gone", lambda: not carrying(kubernetes))


def test_a_claim_that_is_not_mounted_is_told_with_kubelet_s_reason(
    kubernetes: Cluster, name: str
) -> None:
    storage = claimed(kubernetes, name, flex(Path("/srv/nowhere")))
    pod = started(kubernetes, pods.counter(name))
    spec = {"podName": pod, "storage": storage, "timeoutSeconds": 25, "after": "frozen"}
    kubernetes.apply(made("Checkpoint", name, **spec))
    (carrier,) = until("it has a carrier", lambda: carrying(kubernetes))
    assert "mounts a claim for a checkpoint under way" in evict(kubernetes, carrier)
    status = grit.ended(kubernetes, "checkpoint", name, CHECKPOINTED)
    assert (status["phase"], status["reason"]) == ("Failed", "DeadlineExceeded"), status
    assert "no such export" in status["message"]
    assert_runs_on(kubernetes, pod)
    until("its carrier has gone", lambda: not carrying(kubernetes))


def test_a_claim_of_a_block_device_is_refused_at_once(kubernetes: Cluster, name: str) -> None:
    disk = {"csi": {"driver": "disks.example.com", "volumeHandle": "one"}}
    storage = claimed(kubernetes, name, disk, "Block")
    pod = started(kubernetes, pods.counter(name))
    checkpoint = made("Checkpoint", name, podName=pod, storage=storage)
    refused = kubernetes.kubectl("apply", "-f", "-", input=json.dumps(checkpoint), check=False)
    assert "is a block device, expected a file system" in refused.stderr


@pytest.fixture
def of_one_node(kubernetes: Cluster, name: str, shared: Path) -> Iterator[dict[str, Any]]:
    """A counter with a volume that one node may have at a time; it goes before its driver."""
    (shared / name).mkdir()
    storage = claimed(kubernetes, name, flex(SHARED / name, once="true"), access="ReadWriteOnce")
    counter = pods.counter(name)
    (container,) = counter["spec"]["containers"]
    container["volumeMounts"].append({"name": "data", "mountPath": "/data"})
    counter["spec"]["volumes"].append({"name": "data", "persistentVolumeClaim": storage})
    yield counter
    kubernetes.kubectl("delete", KINDS, "--all", "--wait=false", "--grace-period=1")
    until("its pods have gone", lambda: not uids(kubernetes, f"app={name}"), 2 * grit.TIMEOUT_S)


@pytest.mark.parametrize("kind", ["pod", "deployment"])
def test_a_pod_with_a_volume_of_one_node_moves_with_it(
    kubernetes: Cluster, name: str, of_one_node: dict[str, Any], kind: str
) -> None:
    pod = started(kubernetes, of_one_node if kind == "pod" else pods.deployment(of_one_node))
    kubernetes.apply(made("Migration", name, podName=pod))
    status = grit.ended(kubernetes, "migration", name, SUCCEEDED)
    assert status["phase"] == SUCCEEDED, status
    assert_counts_on(kubernetes, status["targetPod"])


def test_a_bare_pod_with_a_volume_of_one_node_comes_back_when_pods_may_be_made_again(
    kubernetes: Cluster, name: str, of_one_node: dict[str, Any]
) -> None:
    pod = started(kubernetes, of_one_node)
    with full(kubernetes, name):
        kubernetes.apply(made("Migration", name, podName=pod))
        reached(kubernetes, "migration", name, "RollingBack")
        until(
            "what is waited for is said",
            lambda: "exceeded quota" in kubernetes.get("migration", name)["status"]["message"],
        )
    status = grit.ended(kubernetes, "migration", name, SUCCEEDED)
    assert status["phase"] == "Failed", status
    node = kubernetes.get("checkpoint", name)["status"]["nodeName"]
    (back,) = living(kubernetes, f"app={name}")
    assert f"pod default/{back['metadata']['name']} goes on, on node {node}" in status["message"]
    assert back["spec"]["nodeName"] == node
    assert_counts_on(kubernetes, back["metadata"]["name"])
