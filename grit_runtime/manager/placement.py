"""Which nodes could take a pod that goes on from a checkpoint, and how the scheduler is told. Pure.

Nodes and pods are dicts as the API server has them. What is on a node already is the scheduler's
to count: here a node is refused only if such a pod could never run and be restored there.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from lightkube.utils.quantity import parse_quantity

from grit_runtime.model import compatibility, selectors
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from grit_runtime.model.compatibility import Facts

# Each is a term in the pod, and pods are kept small: etcd takes 1.5 MiB.
MAX_NODES = 100

_CORDONED = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


class Node(NamedTuple):
    name: str
    labels: Mapping[str, str]
    taints: Sequence[Mapping[str, str]]
    allocatable: Mapping[str, str]
    facts: Facts | None  # None: no agent there answers


def node(body: Mapping[str, Any], facts: Facts | None) -> Node:
    """The node in *body*, of which its agent says *facts*."""
    spec = body.get("spec") or {}
    taints = spec.get("taints") or []
    return Node(
        name=body["metadata"]["name"],
        labels=body["metadata"].get("labels") or {},
        taints=[*taints, _CORDONED] if spec.get("unschedulable") else taints,
        allocatable=(body.get("status") or {}).get("allocatable") or {},
        facts=facts,
    )


def refusals(node: Node, pod_spec: Mapping[str, Any], needs: Facts) -> list[str]:
    """Why a pod of *pod_spec* could not go on there from a checkpoint that *needs* this."""
    reasons = []
    if pod_spec.get("nodeName") not in {None, "", node.name}:
        reasons.append(f"the pod is for node {pod_spec['nodeName']}")
    reasons += [
        f"has the taint {_shown(taint)}, which the pod does not tolerate"
        for taint in node.taints
        if taint["effect"] != "PreferNoSchedule"
        and not any(_tolerates(t, taint) for t in pod_spec.get("tolerations") or ())
    ]
    reasons += [
        f"has no label {key}={value}, which the pod's nodeSelector wants"
        for key, value in (pod_spec.get("nodeSelector") or {}).items()
        if node.labels.get(key) != value
    ]
    terms = _terms(pod_spec)
    if terms is not None and not any(takes(term, node) for term in terms):
        reasons.append("is none that the pod's nodeAffinity requires")
    reasons += _lacking(node, pod_spec)
    if node.facts is None:
        return [*reasons, "has no agent of grit that answers; look at its pod in grit-system"]
    return reasons + compatibility.verdict(needs, node.facts)


def chosen(names: Sequence[str], restore: str) -> Sequence[str]:
    """Those of the nodes *names* that the pod of this Restore is narrowed to.

    They are others for each: many pods that move at once would all be for the same nodes.
    """
    if len(names) <= MAX_NODES:
        return names
    return sorted(random.Random(restore).sample(names, MAX_NODES))  # noqa: S311  it is no secret


def affinity(pod_spec: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The pod's affinity, made narrower: to the nodes *names*, which are one or more.

    The API server takes one name a term (ValidateNodeSelectorTerm), and one of any terms is enough,
    so each of the pod's own comes back once for each node.
    """
    own = _terms(pod_spec)
    whole = dict(pod_spec.get("affinity") or {})
    nodes = dict(whole.get("nodeAffinity") or {})
    by_name = [{"key": "metadata.name", "operator": "In", "values": [name]} for name in names]
    # A term without requirements takes no node, and would take one if it got a name.
    terms = [{}] if own is None else [term for term in own if any(term.values())]
    nodes[_REQUIRED] = {
        "nodeSelectorTerms": [
            {**term, "matchFields": [*(term.get("matchFields") or ()), field]}
            for term in terms
            for field in by_name
        ]
        or own
    }
    return {**whole, "nodeAffinity": nodes}


def takes(term: Mapping[str, Any], node: Node) -> bool:
    """Whether a term of a nodeAffinity takes *node*."""
    labels, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    return (
        bool(labels or fields)
        and all(_meets(node.labels, requirement) for requirement in labels)
        and all(_meets({"metadata.name": node.name}, requirement) for requirement in fields)
    )


def _meets(values: Mapping[str, str], requirement: Mapping[str, Any]) -> bool:
    wanted = tuple(requirement.get("values") or ())
    return selectors.meets(values, requirement["key"], requirement["operator"], wanted)


def _terms(pod_spec: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """The terms of the pod's own required nodeAffinity; None if it has none."""
    nodes = (pod_spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = nodes.get(_REQUIRED)
    return None if required is None else list(required.get("nodeSelectorTerms") or ())


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, str]) -> bool:
    """As ToleratesTaint in the scheduler's component-helpers."""
    if toleration.get("effect") not in {None, "", taint["effect"]}:
        return False
    if toleration.get("key") not in {None, "", taint["key"]}:
        return False
    is_any = toleration.get("operator") == "Exists"
    return is_any or (toleration.get("value") or "") == (taint.get("value") or "")


def _shown(taint: Mapping[str, str]) -> str:
    value = f"={taint['value']}" if taint.get("value") else ""
    return f"{taint['key']}{value}:{taint['effect']}"


def requested(pod_spec: Mapping[str, Any]) -> Counter[str]:
    """What the pod requests of each resource."""
    wanted: Counter[str] = Counter()
    for amounts in _requests(pod_spec, "containers"):
        wanted.update(amounts)
    for amounts in _requests(pod_spec, "initContainers"):
        wanted |= amounts
    return wanted


def _lacking(node: Node, pod_spec: Mapping[str, Any]) -> list[str]:
    """What the pod requests and no such node has, however empty it is."""
    wanted = requested(pod_spec)
    return [
        f"has {node.allocatable.get(name, '0')} of {name}, and the pod requests {amount}"
        for name, amount in wanted.items()
        if amount > _amount(node.allocatable.get(name, "0"))
    ]


def _requests(pod_spec: Mapping[str, Any], kind: str) -> Iterator[Counter[str]]:
    for container in pod_spec.get(kind) or ():
        requests = (container.get("resources") or {}).get("requests") or {}
        yield Counter({name: _amount(text) for name, text in requests.items()})


def _amount(text: str) -> Any:  # a Decimal; Counter is annotated for int
    return parse_quantity(text)
