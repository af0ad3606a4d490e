from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.manager import placement
from grit_runtime.manager.placement import Node
from grit_runtime.model.compatibility import Facts
from grit_runtime.model.manifest import Gpu
from grit_runtime.model.manifest import Node as NodeFacts

HERE = NodeFacts("6.18", "x86_64", ("avx2", "sse2"), "4.2.1", "1.3.6", "2.1.9", "580.159")
H100 = Gpu("GPU-1", "NVIDIA H100", 80 << 30)
NEEDS = Facts(HERE, (H100,))
POD: dict[str, Any] = {
    "nodeSelector": {"grit.dev/runtime": "true"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "containers": [{"resources": {"requests": {"cpu": "500m", "nvidia.com/gpu": "1"}}}],
}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def body(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "node-b", "labels": {"grit.dev/runtime": "true", "zone": "b"}},
        "spec": spec,
        "status": {"allocatable": {"cpu": "2", "nvidia.com/gpu": "1"}},
    }


NODE = placement.node(body(taints=[{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]), NEEDS)


def requiring(*terms: dict[str, Any]) -> dict[str, Any]:
    return {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": list(terms)}}}}


def in_zone(zone: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]}


def test_a_node_that_has_all_takes_the_pod() -> None:
    assert placement.refusals(NODE, POD, NEEDS) == []


@pytest.mark.parametrize(
    ("node", "pod", "words"),
    [
        (placement.node(body(unschedulable=True), NEEDS), POD, "taint node.kubernetes.io/unsched"),
        (NODE, {**POD, "tolerations": []}, "has the taint gpu=yes:NoSchedule, which the pod does"),
        (NODE, {**POD, "nodeSelector": {"disk": "ssd"}}, "has no label disk=ssd, which the pod's"),
        (NODE, {**POD, **requiring(in_zone("a"))}, "none that the pod's nodeAffinity requires"),
        (NODE, {**POD, "nodeName": "node-a"}, "the pod is for node node-a"),
        (NODE._replace(facts=None), POD, "has no agent of grit that answers"),
        (NODE._replace(facts=Facts(HERE, ())), POD, "give it 1 of NVIDIA H100"),
        (
            NODE._replace(allocatable={"cpu": "2"}),
            POD,
            "has 0 of nvidia.com/gpu, and the pod requests 1",
        ),
        (
            NODE._replace(allocatable={"cpu": "400m", "nvidia.com/gpu": "1"}),
            POD,
            "has 400m of cpu, and the pod requests 0.5",
        ),
    ],
)
def test_a_node_that_cannot_take_it_says_why(node: Node, pod: dict[str, Any], words: str) -> None:
    (reason,) = placement.refusals(node, pod, NEEDS)
    assert words in reason


def test_what_is_only_preferred_refuses_nothing() -> None:
    soft = {"key": "slow", "effect": "PreferNoSchedule"}
    assert placement.refusals(NODE._replace(taints=[soft]), POD, NEEDS) == []


@pytest.mark.parametrize(
    ("toleration", "is_tolerated"),
    [
        ({"operator": "Exists"}, True),
        ({"key": "gpu", "value": "yes"}, True),
        ({"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}, True),
        ({"key": "gpu", "value": "no"}, False),
        ({"key": "gpu", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "other", "operator": "Exists"}, False),
    ],
)
def test_taints_are_tolerated_as_by_the_scheduler(
    toleration: dict[str, str],
    is_tolerated: bool,  # noqa: FBT001
) -> None:
    pod = {**POD, "tolerations": [toleration]}
    assert (placement.refusals(NODE, pod, NEEDS) == []) == is_tolerated


def test_the_pod_keeps_what_else_it_asks_of_the_scheduler() -> None:
    preferred = {"podAntiAffinity": {"a": 1}, "nodeAffinity": {"preferred": [1]}}
    found = placement.affinity({"affinity": preferred}, ["node-b"])
    assert found["podAntiAffinity"] == {"a": 1}
    assert found["nodeAffinity"]["preferred"] == [1]
    assert preferred["nodeAffinity"] == {"preferred": [1]}


NAMES = st.sampled_from(["node-a", "node-b", "node-c"])
NODES = st.builds(
    Node,
    name=NAMES,
    labels=st.dictionaries(st.sampled_from(["zone", "disk"]), st.sampled_from(["a", "7"])),
    taints=st.just(()),
    allocatable=st.just({}),
    facts=st.just(NEEDS),
)
REQUIREMENTS = st.lists(
    st.fixed_dictionaries(
        {
            "key": st.sampled_from(["zone", "disk"]),
            "operator": st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]),
            "values": st.lists(st.sampled_from(["a", "7", "5"]), max_size=2),
        }
    ),
    max_size=2,
)
BY_NAME = st.lists(
    st.fixed_dictionaries(
        {
            "key": st.just("metadata.name"),
            "operator": st.sampled_from(["In", "NotIn"]),
            "values": NAMES.map(lambda name: [name]),
        }
    ),
    max_size=2,
)
TERMS = st.lists(
    st.fixed_dictionaries({}, optional={"matchExpressions": REQUIREMENTS, "matchFields": BY_NAME}),
    max_size=3,
)


@given(st.none() | TERMS, NODES, st.lists(NAMES, min_size=1, unique=True))
def test_an_affinity_is_narrowed_to_the_named_nodes_and_never_widened(
    terms: list[dict[str, Any]] | None, node: Node, names: list[str]
) -> None:
    pod = {} if terms is None else requiring(*terms)
    narrowed = placement.affinity(pod, names)["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
    is_taken = terms is None or any(placement.takes(term, node) for term in terms)
    assert any(placement.takes(term, node) for term in narrowed) == (
        is_taken and node.name in names
    )
    for term in narrowed:
        assert all(len(field["values"]) == 1 for field in term.get("matchFields", ()))


def test_a_pod_stays_small_in_a_large_cluster() -> None:
    names = [f"node-{number}" for number in range(1000)]
    found = placement.chosen(names, "trainer-to-b")
    assert len(set(found)) == placement.MAX_NODES
    assert set(found) < set(names)
    assert placement.chosen(names, "trainer-to-b") == found


def test_pods_that_move_at_once_are_not_all_for_the_same_nodes() -> None:
    names = [f"node-{number}" for number in range(1000)]
    found = {name for number in range(100) for name in placement.chosen(names, f"move-{number}")}
    assert len(found) > 990
