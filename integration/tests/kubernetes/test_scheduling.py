"""What is decided about pods and nodes, beside what a real API server and scheduler decide."""

from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from grit_runtime.manager import placement
from grit_runtime.model import pod_template
from grit_runtime.model.compatibility import Facts
from grit_runtime.model.manifest import Node as NodeFacts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.kubernetes.cluster import Cluster

FACTS = Facts(NodeFacts("6.18", "x86_64", (), "4.2.1", "1.3.6", "2.1.9", ""), ())
NODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "labelled": {"labels": {"disk": "ssd", "generation": "7"}},
    "tainted": {"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]},
    "cordoned": {"unschedulable": True},
    "large": {"amounts": {"cpu": "64", "example.com/gpu": "2"}},
}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
NUMBERS = itertools.count()


def terms(*found: dict[str, Any]) -> dict[str, Any]:
    return {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": list(found)}}}}


def expression(key: str, operator: str, *values: str) -> dict[str, Any]:
    requirement = {"key": key, "operator": operator, **({"values": values} if values else {})}
    return {"matchExpressions": [requirement]}


def requests(**amounts: str) -> dict[str, Any]:
    named = {
        name.replace("_", "/").replace("example", "example.com"): amounts[name] for name in amounts
    }
    resources = {"requests": named, "limits": named}
    return {"containers": [{"name": "main", "image": "none", "resources": resources}]}


PODS: dict[str, dict[str, Any]] = {
    "any": {},
    "by label": {"nodeSelector": {"disk": "ssd"}},
    "by a label that no node has": {"nodeSelector": {"disk": "tape"}},
    "tolerates a taint": {"tolerations": [{"key": "gpu", "operator": "Exists"}]},
    "tolerates another value": {"tolerations": [{"key": "gpu", "value": "no"}]},
    "tolerates all": {"tolerations": [{"operator": "Exists"}]},
    "not in": terms(expression("disk", "NotIn", "ssd")),
    "greater": terms(expression("generation", "Gt", "6")),
    "not greater": terms(expression("generation", "Gt", "7")),
    "one of two": terms(expression("disk", "Exists"), expression("none", "Exists")),
    "an empty term": terms({}),
    "an empty term and one": terms({}, expression("disk", "Exists")),
    "requests a card": requests(example_gpu="1"),
    "requests too many cards": requests(example_gpu="3"),
    "requests much": requests(cpu="8"),
}


def node(name: str, what: dict[str, Any]) -> dict[str, Any]:
    amounts = {"cpu": "2", "memory": "4Gi", "pods": "110", **what.get("amounts", {})}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": what.get("labels", {})},
        "spec": {key: what[key] for key in ("taints", "unschedulable") if key in what},
        "status": {
            "capacity": amounts,
            "allocatable": amounts,
            "conditions": [{"type": "Ready", "status": "True", "reason": "", "message": ""}],
        },
    }


@pytest.fixture(scope="module")
def nodes(control_plane: Cluster) -> Iterator[list[placement.Node]]:
    """Those of NODES, as objects without a kubelet."""
    for name, what in NODES.items():
        control_plane.kubectl("create", "-f", "-", input=json.dumps(node(name, what)))
    for name in NODES:
        control_plane.plane.wait_until(
            f"{name} is taken for ready",
            *("wait", "--for=condition=Ready", f"node/{name}", "--timeout=5s"),
        )
    yield [
        placement.node({**control_plane.get("node", name), "spec": node(name, what)["spec"]}, FACTS)
        for name, what in NODES.items()
    ]
    control_plane.kubectl("delete", "node", *NODES)


@pytest.fixture
def living(control_plane: Cluster, nodes: list[placement.Node]) -> list[placement.Node]:
    """The nodes, for whom kubelets would say every few seconds that they are there."""
    renewed = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    control_plane.apply(
        *(
            {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": name, "namespace": "kube-node-lease"},
                "spec": {"holderIdentity": name, "renewTime": renewed},
            }
            for name in NODES
        )
    )
    return nodes


def scheduled(cluster: Cluster, *specs: dict[str, Any]) -> list[str]:
    """The node that the scheduler takes for a pod of each spec; "" if it takes none."""
    batch = str(next(NUMBERS))
    pods: list[dict[str, Any]] = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"pod-{at}", "labels": {"batch": batch}},
            "spec": spec,
        }
        for at, spec in enumerate(specs)
    ]
    whole = {"apiVersion": "v1", "kind": "List", "items": pods}
    cluster.kubectl("create", "-f", "-", input=json.dumps(whole))
    seen = "".join(f"{{.items[{at}].status.conditions[0].type}}" for at in range(len(pods)))
    cluster.plane.wait_until(
        "the scheduler has seen each",
        *("get", "pods", "-l", f"batch={batch}", "-o", f"jsonpath={seen}"),
        "--allow-missing-template-keys=false",
    )
    found = cluster.get("pods", "-l", f"batch={batch}")["items"]
    cluster.kubectl("delete", "pods", "-l", f"batch={batch}", "--force", "--grace-period=0")
    nodes = {pod["metadata"]["name"]: pod["spec"].get("nodeName", "") for pod in found}
    return [nodes[pod["metadata"]["name"]] for pod in pods]


@pytest.mark.parametrize("changes", PODS.values(), ids=PODS.keys())
def test_the_scheduler_takes_a_node_just_where_none_is_refused(
    control_plane: Cluster, living: list[placement.Node], changes: dict[str, Any]
) -> None:
    spec = {"containers": [{"name": "main", "image": "none"}], **changes}
    able = [one.name for one in living if not placement.refusals(one, spec, FACTS)]
    to_one = [{**spec, "affinity": placement.affinity(spec, [name])} for name in NODES]
    anywhere, *there = scheduled(control_plane, spec, *to_one)
    assert (anywhere in able) == bool(able)
    assert there == [name if name in able else "" for name in NODES]


def template(name: str) -> dict[str, Any]:
    """Of the pods of an owner of that name."""
    container = {
        "name": "trainer",
        "image": "trainer:1",
        "env": [{"name": "LR", "value": "0.2"}],
        "ports": [{"containerPort": 80}],
        "resources": {"limits": {"memory": "1Gi"}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    return {
        "metadata": {"labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [container],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    }


def pods_of(cluster: Cluster, kind: str, name: str) -> list[dict[str, Any]]:
    """Both pods of a set of two."""
    pods = template(name)
    selector = {"matchLabels": pods["metadata"]["labels"]}
    spec = {"replicas": 2, "selector": selector, "template": pods}
    if kind == "StatefulSet":
        spec |= {"serviceName": name, "podManagementPolicy": "Parallel"}
    cluster.apply({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name}, "spec": spec})
    of_it = ("pods", "-l", f"app={name}")
    two = "jsonpath={.items[1].metadata.name}"
    cluster.plane.wait_until("it has two pods", "get", *of_it, "-o", two)
    found: list[dict[str, Any]] = cluster.get(*of_it)["items"]
    cluster.kubectl("delete", kind, name, "--wait=false")
    cluster.kubectl("delete", *of_it, "--force", "--grace-period=0")
    return found


def test_the_pods_of_one_template_differ_in_nothing(control_plane: Cluster) -> None:
    one, other = pods_of(control_plane, "Deployment", "deployed")
    assert one["metadata"]["name"] != other["metadata"]["name"]
    assert pod_template.differences(one, other) == []
    # Nor does a pod in the making, which has no defaults and no token yet.
    lines = pod_template.differences(template("deployed"), one)
    assert [line for line in lines if "serviceaccount" not in line] == []


def test_the_pods_of_a_stateful_set_have_a_state_each(control_plane: Cluster) -> None:
    one, other = pods_of(control_plane, "StatefulSet", "numbered")
    (line,) = pod_template.differences(one, other)
    assert line.startswith("labels[statefulset.kubernetes.io/pod-name]: 'numbered-")
