"""A pod of many parts moves: containers, an init container, and volumes of every kind."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from grit_runtime.manager.api import SUCCEEDED
from integration.kubernetes import grit, pods
from integration.kubernetes.objects import assert_goes_on, living, made, started, until
from integration.node import volume

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from integration.kubernetes.cluster import Cluster

POINT = Path("/srv/parts")  # where the volume is on nodes
PREPARE = "open('/claim/prepared', 'a').write('once more\\n')"


def parts(name: str) -> dict[str, Any]:
    """A counter with a second one beside it, and what both have of the cluster."""
    pod = pods.counter(name)
    pod["metadata"]["annotations"] = {"kubectl.kubernetes.io/default-logs-container": "counter"}
    spec = pod["spec"]
    (counter,) = spec["containers"]
    places = {"claim": "/claim", "settings": "/settings", "token": "/token"}
    counter["volumeMounts"] += [{"name": one, "mountPath": at} for one, at in places.items()]
    prepare = {**counter, "name": "prepare", "command": ["/usr/bin/python3", "-c", PREPARE]}
    spec["initContainers"] = [prepare]
    spec["containers"] = [counter, {**counter, "name": "beside"}]
    token = {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}}
    spec["volumes"] += [
        {"name": "claim", "persistentVolumeClaim": {"claimName": name}},
        {"name": "settings", "configMap": {"name": name}},
        {"name": "token", "projected": {"sources": [token]}},
    ]
    return pod


def claim(name: str) -> list[dict[str, Any]]:
    """A claim with its volume, which is a directory of nodes."""
    common = {"accessModes": ["ReadWriteMany"], "storageClassName": name}
    size = {"storage": "1Gi"}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {**common, "capacity": size, "hostPath": {"path": str(POINT)}},
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name},
            "spec": {**common, "resources": {"requests": size}},
        },
    ]


@pytest.fixture
def having(kubernetes: Cluster, name: str, tmp_path: Path) -> Iterator[None]:
    """What the pod has of the cluster is there."""
    for node in kubernetes.nodes:
        volume.mount(tmp_path, node, POINT)
    settings = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}
    kubernetes.apply(*claim(name), {**settings, "data": {"rate": "20 a second"}})
    until("it is bound", lambda: kubernetes.get("pvc", name)["status"].get("phase") == "Bound")
    yield
    kubernetes.kubectl("delete", "deployment,pvc,pv,configmap", name, "--wait=false", check=False)
    for node in kubernetes.nodes:
        node.run(["umount", "--lazy", str(POINT)])


def read(kubernetes: Cluster, pod: str, path: str) -> str:
    """What the pod's container finds in a file."""
    program = f"print(open({path!r}).read(), end='')"
    words = ["exec", pod, "--container=beside", "--", "/usr/bin/python3", "-c", program]
    return kubernetes.kubectl(*words).stdout


def test_all_parts_of_a_pod_go_on_and_read_the_same_files(
    kubernetes: Cluster,
    name: str,
    having: None,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    pod = started(kubernetes, pods.deployment(parts(name)))
    (tmp_path / "shared").write_text("of the claim")
    kubernetes.apply(made("Migration", name, podName=pod))
    status = grit.ended(kubernetes, "migration", name, SUCCEEDED)
    assert status["phase"] == SUCCEEDED, status
    target = status["targetPod"]
    for container in ("counter", "beside"):
        assert_goes_on(kubernetes, target, container)
    (left,) = living(kubernetes, f"app={name}")
    assert left["metadata"]["name"] == target
    assert read(kubernetes, target, "/claim/shared") == "of the claim"
    assert read(kubernetes, target, "/settings/rate") == "20 a second"
    claims = read(kubernetes, target, "/token/token").split(".")[1]
    said = json.loads(base64.urlsafe_b64decode(claims + "=="))
    assert said["kubernetes.io"]["pod"]["name"] == target  # its own, and not the source's
    assert (tmp_path / "prepared").read_text() == 2 * "once more\n"
