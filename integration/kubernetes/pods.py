"""Manifests of the pods that the tests run in a cluster."""

from __future__ import annotations

from typing import Any

from integration.node import images, rootfs
from integration.node.node import HANDLER
from integration.pods import workload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.node.rootfs import Edition


def counter(
    name: str,
    *,
    node: str = "",
    annotations: dict[str, str] | None = None,
    runtime_class: str = HANDLER,
) -> dict[str, Any]:
    """A pod of one container that counts, on *node* or wherever the scheduler has it."""
    container = {
        "name": "counter",
        "image": images.PYTHON,
        "command": ["/usr/bin/python3", "-c", workload.COUNTER, "1"],
        "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}, "annotations": annotations or {}},
        "spec": {
            "runtimeClassName": runtime_class,
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            "volumes": [{"name": "scratch", "emptyDir": {}}],
            **({"nodeName": node} if node else {}),
        },
    }


def wanting(pod: dict[str, Any], cpu: str, priority_class: str = "") -> dict[str, Any]:
    """The *pod*, with a request for so much."""
    (container,) = pod["spec"]["containers"]
    container["resources"] = {"requests": {"cpu": cpu}}
    if priority_class:
        pod["spec"]["priorityClassName"] = priority_class
    return pod


def pending(name: str) -> dict[str, Any]:
    """A pod that no scheduler ever puts on a node."""
    container = {"name": "main", "image": images.BUSYBOX}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"schedulerName": "none", "containers": [container]},
    }


def deployment(pod: dict[str, Any]) -> dict[str, Any]:
    """A Deployment of one such *pod*, by the same name."""
    return _owner("apps/v1", "Deployment", pod, selector=_selector(pod))


def replica_set(pod: dict[str, Any]) -> dict[str, Any]:
    """A ReplicaSet of one such *pod*, by the same name, and of no Deployment."""
    return _owner("apps/v1", "ReplicaSet", pod, selector=_selector(pod))


def stateful_set(pod: dict[str, Any]) -> dict[str, Any]:
    """A StatefulSet of one such *pod*, by the same name."""
    return _owner("apps/v1", "StatefulSet", pod, selector=_selector(pod), serviceName="none")


def job(pod: dict[str, Any]) -> dict[str, Any]:
    """A Job of one such *pod*, by the same name."""
    return _owner("batch/v1", "Job", {**pod, "spec": {**pod["spec"], "restartPolicy": "Never"}})


def daemon_set(pod: dict[str, Any]) -> dict[str, Any]:
    """A DaemonSet of such a *pod*, by the same name."""
    return _owner("apps/v1", "DaemonSet", pod, selector=_selector(pod))


def _owner(version: str, kind: str, pod: dict[str, Any], **spec: Any) -> dict[str, Any]:
    metadata = pod["metadata"]
    template = {"metadata": {**metadata, "name": None}, "spec": pod["spec"]}
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": metadata["name"]},
        "spec": {**spec, "template": template},
    }


def _selector(pod: dict[str, Any]) -> dict[str, Any]:
    return {"matchLabels": pod["metadata"]["labels"]}


def of_the_project(name: str, edition: Edition, command: list[str]) -> dict[str, Any]:
    """A pod whose *command* is run by a Python that finds the project and what it depends on, as
    they are installed on its node."""
    container = {
        "name": name,
        "image": images.PYTHON,
        "command": ["/usr/bin/python3", *command],
        "env": [{"name": "PYTHONPATH", "value": "/packages"}],
        "volumeMounts": [{"name": "packages", "mountPath": "/packages", "readOnly": True}],
    }
    packages = {"path": f"/{rootfs.site_packages(edition)}"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "containers": [container],
            "volumes": [{"name": "packages", "hostPath": packages}],
        },
    }
