from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.model.pod_template import differences, digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    import random

TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105  a path


def pod(**changes: Any) -> dict[str, Any]:
    """A trainer as the API server has it, with *changes* to its spec."""
    return {
        "metadata": {"name": "trainer-x7k2p", "labels": {"app": "trainer"}},
        "spec": {
            "runtimeClassName": "grit",
            "nodeName": "node-a",
            "restartPolicy": "Always",
            "serviceAccountName": "default",
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "volumes": [
                {"name": "data", "emptyDir": {}},
                {"name": "config", "configMap": {"name": "trainer", "defaultMode": 420}},
                {"name": "kube-api-access-abcde", "projected": {"sources": [{"a": 1}]}},
            ],
            "containers": [
                {
                    "name": "trainer",
                    "image": "trainer:1",
                    "command": ["python3", "train.py"],
                    "env": [
                        {"name": "LR", "value": "0.2"},
                        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    ],
                    "imagePullPolicy": "IfNotPresent",
                    "resources": {"limits": {"nvidia.com/gpu": "1", "memory": "8Gi"}},
                    "securityContext": {"runAsUser": 1000},
                    "terminationMessagePath": "/dev/termination-log",
                    "volumeMounts": [
                        {"name": "data", "mountPath": "/data"},
                        {"name": "config", "mountPath": "/etc/trainer", "readOnly": True},
                        {
                            "name": "kube-api-access-abcde",
                            "mountPath": TOKEN_PATH,
                            "readOnly": True,
                        },
                    ],
                }
            ],
            **changes,
        },
    }


def trainer(of: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = of["spec"]["containers"][0]
    return found


def with_container(**changes: Any) -> dict[str, Any]:
    changed = pod()
    trainer(changed).update(changes)
    return changed


def with_env(value: str) -> dict[str, Any]:
    return with_container(env=[{"name": "LR", "value": value}, trainer(pod())["env"][1]])


def with_sidecar() -> dict[str, Any]:
    return pod(containers=[trainer(pod()), {"name": "istio-proxy", "image": "proxy:1"}])


def of_index(index: str) -> dict[str, Any]:
    indexed = pod()
    indexed["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": index}
    return indexed


@pytest.mark.parametrize(
    ("here", "line"),
    [
        (
            with_env("0.1"),
            "containers[trainer].env[LR]: '0.1' here, '0.2' in the checkpoint",
        ),
        (
            with_container(image="trainer:2"),
            "containers[trainer].image: 'trainer:2' here, 'trainer:1' in the checkpoint",
        ),
        (
            with_container(command=None),
            "containers[trainer].command: nothing here, ['python3', 'train.py'] in the checkpoint",
        ),
        (
            with_container(resources={"limits": {"nvidia.com/gpu": "2"}}),
            "containers[trainer].resources.limits[nvidia.com/gpu]: '2' here, '1' in the checkpoint",
        ),
        (
            with_container(securityContext={"runAsUser": 0}),
            "containers[trainer].securityContext.runAsUser: 0 here, 1000 in the checkpoint",
        ),
        (
            with_container(volumeMounts=trainer(pod())["volumeMounts"][1:]),
            "containers[trainer].volumeMounts[/data].name: nothing here, 'data' in the checkpoint",
        ),
        (with_sidecar(), "containers[istio-proxy]: is only here"),
        (
            pod(initContainers=[{"name": "init", "image": "a"}]),
            "initContainers[init]: is only here",
        ),
        (pod(hostNetwork=True), "hostNetwork: True here, nothing in the checkpoint"),
        (pod(runtimeClassName="runc"), "runtimeClassName: 'runc' here, 'grit' in the checkpoint"),
        (
            pod(
                volumes=[
                    {"name": "data", "hostPath": {"path": "/d"}},
                    *pod()["spec"]["volumes"][1:],
                ]
            ),
            "volumes[data].hostPath: is only here",
        ),
        (
            of_index("3"),
            "annotations[batch.kubernetes.io/job-completion-index]: '3' here, nothing",
        ),
    ],
)
def test_what_differs_is_named(here: dict[str, Any], line: str) -> None:
    found = differences(here, pod())
    assert line in [text[: len(line)] for text in found]
    assert digest(here) != digest(pod())


def test_a_container_that_is_missing_is_one_difference() -> None:
    assert differences(pod(), with_sidecar()) == [
        "containers[istio-proxy]: is only in the checkpoint"
    ]


def test_long_values_are_cut() -> None:
    (line,) = differences(with_env("x" * 999), pod())
    assert len(line) < 160


def test_siblings_of_an_indexed_job_are_told_apart() -> None:
    assert differences(of_index("1"), of_index("1")) == []
    assert len(differences(of_index("1"), of_index("2"))) == 1


def added_by_others(of: dict[str, Any]) -> dict[str, Any]:
    """The pod as the scheduler, admission and kubelet make it elsewhere."""
    text = copy.deepcopy(of)
    text["metadata"] |= {"name": "trainer-9f8d7", "uid": "8"}
    text["spec"] |= {
        "nodeName": "node-b",
        "affinity": {"nodeAffinity": {}},
        "tolerations": [],
        "priority": 1000,
        "priorityClassName": "high",
        "enableServiceLinks": True,
        "ephemeralContainers": [{"name": "debugger", "image": "sh"}],
        "schedulingGates": [{"name": "manager.grit.dev/hold"}],
        "hostNetwork": False,
    }
    for container in text["spec"]["containers"]:
        container |= {"imagePullPolicy": "Always", "ports": [{"containerPort": 80}], "tty": False}
        container.setdefault("resources", {}).setdefault("limits", {})["memory"] = "9Gi"
        for mount in container.get("volumeMounts", []):
            mount["name"] = mount["name"].replace("abcde", "vwxyz")
    for volume in text["spec"]["volumes"]:
        volume["name"] = volume["name"].replace("abcde", "vwxyz")
    return text


def test_what_each_pod_is_given_for_itself_does_not_count() -> None:
    assert differences(added_by_others(pod()), pod()) == []
    assert digest(added_by_others(pod())) == digest(pod())


def test_a_token_s_secret_of_older_clusters_does_not_count() -> None:
    def with_token(name: str) -> dict[str, Any]:
        mounts = [{"name": name, "mountPath": TOKEN_PATH, "readOnly": True}]
        older = with_container(volumeMounts=mounts)
        older["spec"]["volumes"] = [{"name": name, "secret": {"secretName": name}}]
        return older

    assert differences(with_token("default-token-4x7fm"), with_token("default-token-p9q2z")) == []


# Any pods, of few names so that they have much in common.
NAMES = st.sampled_from(["a", "b", "c"])
VALUES = st.sampled_from(["", "0", "1"])
CONTAINERS = st.lists(
    st.fixed_dictionaries(
        {"name": NAMES, "image": VALUES},
        optional={
            "env": st.lists(
                st.fixed_dictionaries({"name": NAMES}, optional={"value": VALUES}),
                unique_by=lambda item: str(item["name"]),
            ),
            "volumeMounts": st.lists(
                st.fixed_dictionaries(
                    {"name": NAMES, "mountPath": NAMES}, optional={"readOnly": st.booleans()}
                ),
                unique_by=lambda item: str(item["mountPath"]),
            ),
            "args": st.lists(VALUES),
            "tty": st.booleans(),
            "securityContext": st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES)),
        },
    ),
    unique_by=lambda item: str(item["name"]),
)
VOLUMES = st.lists(
    st.tuples(NAMES, st.sampled_from(["emptyDir", "hostPath"]), st.dictionaries(NAMES, VALUES)).map(
        lambda parts: {"name": parts[0], parts[1]: parts[2]}
    ),
    unique_by=lambda item: str(item["name"]),
)
PODS = st.fixed_dictionaries(
    {"containers": CONTAINERS, "initContainers": CONTAINERS, "volumes": VOLUMES}
).map(lambda spec: {"metadata": {}, "spec": spec})


def shuffled(value: Any, chance: random.Random) -> Any:
    """*value* with its maps, and its lists of named things, in another order."""
    if isinstance(value, dict):
        items = [(key, shuffled(inner, chance)) for key, inner in value.items()]
        chance.shuffle(items)
        return dict(items)
    if isinstance(value, list) and all(isinstance(inner, dict) for inner in value):
        items_ = [shuffled(inner, chance) for inner in value]
        chance.shuffle(items_)
        return items_
    return value


@given(made=PODS, chance=st.randoms(use_true_random=False))
def test_order_and_what_is_added_change_nothing(
    made: dict[str, Any], chance: random.Random
) -> None:
    other = added_by_others(shuffled(made, chance))
    for container in other["spec"]["containers"]:
        container.pop("tty")  # what it is added where the pod has it set
    for container in made["spec"]["containers"]:
        container.pop("tty", None)
    assert differences(other, made) == []
    assert digest(other) == digest(made)


@given(one=PODS, other=PODS)
def test_digests_are_equal_where_nothing_differs(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    assert (digest(one) == digest(other)) == (differences(one, other) == [])
    assert len(differences(one, other)) == len(differences(other, one))
