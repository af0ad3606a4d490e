"""Manifests and commands as upstream's documents have them, word for word."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.kubernetes import grit, pods
from integration.kubernetes.objects import (
    assert_counts_on,
    living,
    started,
    until,
)
from integration.node import volume

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from integration.kubernetes.cluster import Cluster

pytestmark = pytest.mark.usefixtures("manager")

CLAIM = """\
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: ckpt-store
  namespace: default
spec:
  accessModes:
    - ReadWriteMany
  storageClassName: azurefile-csi-premium
  resources:
    requests:
      storage: 256Gi
"""
CHECKPOINT = """\
apiVersion: kaito.sh/v1alpha1
kind: Checkpoint
metadata:
  name: demo
  namespace: default
spec:
  autoMigration: false
  podName: "falcon7b-tuning-cp4kz" # your pod name
  volumeClaim:
    claimName: "ckpt-store"
"""
GPU_CHECKPOINT = """\
apiVersion: kaito.sh/v1alpha1
kind: Checkpoint
metadata:
  name: gpu-checkpoint
spec:
  podName: $POD_NAME
  autoMigration: false
  volumeClaim:
    claimName: ckpt-store
"""
GPU_RESTORE = """\
apiVersion: kaito.sh/v1alpha1
kind: Restore
metadata:
  name: gpu-restore
spec:
  checkpointName: gpu-checkpoint
  selector:
    matchLabels:
      app: gpu-test-restored
"""
POINT = Path("/srv/volume")  # where the volume is on nodes


@pytest.fixture
def claimed(kubernetes: Cluster, tmp_path: Path) -> Iterator[None]:
    """The claim of the documents, bound to a volume that both nodes have."""
    for node in kubernetes.nodes:
        volume.mount(tmp_path, node, POINT)
    kubernetes.apply(_volume())
    kubernetes.kubectl("apply", "-f", "-", input=CLAIM)
    until(
        "it is bound", lambda: kubernetes.get("pvc", "ckpt-store")["status"].get("phase") == "Bound"
    )
    yield
    kinds = "restores,checkpoints,deployments,replicasets,pods,pvc,pv"
    kubernetes.kubectl("delete", kinds, "--all", "--wait=false", "--grace-period=1")
    for node in kubernetes.nodes:
        node.run(["umount", "--lazy", str(POINT)])


def test_a_deleted_pods_replacement_starts_from_its_checkpoint(
    kubernetes: Cluster,
    claimed: None,  # noqa: ARG001
) -> None:
    """The quick start of the README: no Restore is made by anybody."""
    pod = pods.counter("falcon7b-tuning-cp4kz")
    pod["metadata"]["labels"] = {"app": "falcon7b-tuning"}
    kubernetes.apply(pod)
    kubernetes.apply(_replica_set(pod, "falcon7b-tuning"))
    kubernetes.wait("--for=condition=Ready", "pod/falcon7b-tuning-cp4kz")
    kubernetes.wait_for_log("falcon7b-tuning-cp4kz", "20")
    kubernetes.kubectl("apply", "-f", "-", input=CHECKPOINT)
    status = grit.ended(kubernetes, "checkpoint", "demo", "Checkpointed")
    assert status["phase"] == "Checkpointed", status
    assert status["dataPath"] == "azure-files://default/demo"
    kubernetes.kubectl("delete", "pod", "falcon7b-tuning-cp4kz", "--wait=false")
    (new,) = until("there is another", lambda: living(kubernetes, "app=falcon7b-tuning"))
    assert new["metadata"]["annotations"]["grit.dev/checkpoint"].endswith("/default/demo")
    # On the node of the deleted one kubelet has to try again until that has ended.
    assert_counts_on(kubernetes, new["metadata"]["name"])
    restore = grit.ended(kubernetes, "restore", "demo", "Restored")
    assert (restore["phase"], restore["targetPod"]) == ("Restored", new["metadata"]["name"])


def test_a_pod_that_a_restore_selects_goes_on(
    kubernetes: Cluster,
    claimed: None,  # noqa: ARG001
) -> None:
    """The quick start for GPUs, with a counter in PyTorch's place."""
    counter = pods.counter("gpu-test")
    name = started(kubernetes, pods.deployment(counter))
    waiting = ["wait", "--for=condition=ready", "pod", "-l", "app=gpu-test", "--timeout=60s"]
    kubernetes.kubectl(*waiting)
    path = "jsonpath={.items[0].metadata.name}"
    assert kubernetes.kubectl("get", "pod", "-l", "app=gpu-test", "-o", path).stdout == name
    manifest = GPU_CHECKPOINT.replace("$POD_NAME", name)
    kubernetes.kubectl("apply", "-f", "-", input=manifest)
    grit.ended(kubernetes, "checkpoint", "gpu-checkpoint", "Checkpointed")
    shown = kubernetes.kubectl("get", "checkpoint", "gpu-checkpoint").stdout.split()
    assert {"gpu-checkpoint", "Checkpointed", name} <= set(shown)
    assert {"NAME", "POD", "PHASE", "NODE"} <= set(shown)
    kubernetes.kubectl("delete", "deployment", "gpu-test", "--wait=false")
    kubernetes.kubectl("apply", "-f", "-", input=GPU_RESTORE)
    restored = pods.counter("gpu-test-restored")
    kubernetes.apply(restored)
    status = grit.ended(kubernetes, "restore", "gpu-restore", "Restored")
    assert status["phase"] == "Restored", status
    assert_counts_on(kubernetes, "gpu-test-restored")  # the source's node may end it a little later


def _volume() -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": "azure-files"},
        "spec": {
            "accessModes": ["ReadWriteMany"],
            "capacity": {"storage": "256Gi"},
            "hostPath": {"path": str(POINT)},
            "storageClassName": "azurefile-csi-premium",
        },
    }


def _replica_set(pod: dict[str, Any], name: str) -> dict[str, Any]:
    labels = pod["metadata"]["labels"]
    template = {"metadata": {"labels": labels}, "spec": pod["spec"]}
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": name},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template},
    }
