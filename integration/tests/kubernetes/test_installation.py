"""A cluster in which grit is installed: who may do what, and what a manager that is away stops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from grit_runtime.manager import api, names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.kubernetes.cluster import Cluster

OLDER = Path(__file__).parents[3] / "runtime-config/kubernetes-older"
MANAGER = f"system:serviceaccount:{names.NAMESPACE}:{names.MANAGER}"
CHECKPOINT = {
    "apiVersion": api.API_VERSION,
    "kind": "Checkpoint",
    "metadata": {"name": "nightly", "finalizers": ["kaito.sh/checkpoint"]},
    "spec": {"podName": "trainer-0"},
}


@pytest.fixture(scope="module")
def installed(control_plane: Cluster) -> Iterator[Cluster]:
    """It, with no node that could run a manager."""
    all_but_the_budget(control_plane, "apply")
    control_plane.wait("--for=condition=Established", "crd/checkpoints.kaito.sh")
    yield control_plane
    all_but_the_budget(control_plane, "delete", "--wait=true")


def all_but_the_budget(cluster: Cluster, *words: str) -> None:
    """Have kubectl do that to all objects but the PodDisruptionBudget.

    Kubernetes 1.20 has none of policy/v1, which its kubectl may know already.
    """
    done = cluster.kubectl(*words, "-k", OLDER, check=False, timeout_s=120)
    (refused,) = done.stderr.splitlines()
    assert refused.startswith(("Error from server (NotFound)", "error: unable to recognize"))


def may(cluster: Cluster, user: str, verb: str, what: str, namespace: str = "default") -> bool:
    """What `kubectl auth can-i` says."""
    resource, _, name = what.partition("=")
    kind, _, subresource = resource.partition("/")
    words = ["auth", "can-i", verb, f"{kind}/{name}" if name else kind, "-n", namespace]
    words += [f"--subresource={subresource}"] if subresource else []
    said = cluster.kubectl(*words, f"--as={user}", check=False).stdout.strip()
    assert said in {"yes", "no"}, said
    return said == "yes"


@pytest.mark.parametrize(
    ("verb", "what"),
    [
        ("patch", "checkpoints.kaito.sh/status"),
        ("restore", "checkpoints.kaito.sh"),
        ("create", "pods"),
        ("delete", "pods"),
        ("patch", "nodes"),
        ("get", "persistentvolumeclaims"),
        ("patch", "mutatingwebhookconfigurations.admissionregistration.k8s.io=grit-manager"),
        ("update", "certificatesigningrequests.certificates.k8s.io/approval"),
    ],
)
def test_the_manager_may_do_its_work(installed: Cluster, verb: str, what: str) -> None:
    assert may(installed, MANAGER, verb, what)


@pytest.mark.parametrize(
    ("verb", "what"),
    [
        ("get", "secrets"),
        ("list", "secrets"),
        ("create", "secrets"),
        ("create", "pods/exec"),
        ("create", "jobs.batch"),
        ("delete", "nodes"),
        ("patch", "mutatingwebhookconfigurations.admissionregistration.k8s.io=another"),
        ("create", "clusterroles.rbac.authorization.k8s.io"),
        ("delete", "migrations.kaito.sh"),
    ],
)
def test_the_manager_may_do_nothing_else(installed: Cluster, verb: str, what: str) -> None:
    assert not may(installed, MANAGER, verb, what)


def test_the_manager_s_own_secret_is_the_only_one_it_reads(installed: Cluster) -> None:
    own = f"secrets={names.CERTIFICATES}"
    assert may(installed, MANAGER, "get", own, names.NAMESPACE)
    assert not may(installed, MANAGER, "get", "secrets=another", names.NAMESPACE)
    assert not may(installed, MANAGER, "list", "secrets", names.NAMESPACE)


def test_users_of_a_namespace_have_what_their_role_says(installed: Cluster) -> None:
    for role in ("view", "edit"):
        installed.kubectl(
            "create", "rolebinding", role, f"--clusterrole={role}", f"--user={role}er"
        )
    # The roles are aggregated by a controller.
    installed.plane.wait_until(
        "the role edit has grit's verbs",
        *("auth", "can-i", "restore", "checkpoints.kaito.sh", "--as=editer", "-n", "default"),
    )
    for verb in ("get", "list", "watch"):
        assert may(installed, "viewer", verb, "checkpoints.kaito.sh")
        assert may(installed, "editer", verb, "migrations.kaito.sh")
    for verb in ("create", "delete", "restore"):
        assert not may(installed, "viewer", verb, "checkpoints.kaito.sh")
        assert may(installed, "editer", verb, "checkpoints.kaito.sh")
    assert not may(installed, "editer", "patch", "checkpoints.kaito.sh/status")
    assert not may(installed, "editer", "create", "checkpoints.kaito.sh", "kube-system")


def pod(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "runtimeClassName": "grit",
            "containers": [{"name": "main", "image": "none"}],
        },
    }


def test_pods_start_and_are_evicted_while_no_manager_is_there(installed: Cluster) -> None:
    installed.apply(pod("alone"))
    eviction = {
        "apiVersion": "policy/v1beta1",
        "kind": "Eviction",
        "metadata": {"name": "alone", "namespace": "default"},
    }
    path = "/api/v1/namespaces/default/pods/alone/eviction"
    installed.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(eviction))


def test_objects_wait_for_a_manager_and_finalizers_do_not(installed: Cluster) -> None:
    file = installed.plane.write("checkpoint.json", json.dumps(CHECKPOINT))
    refused = installed.kubectl("create", "-f", file, check=False)
    assert 'failed calling webhook "objects.grit.dev"' in refused.stderr

    webhooks = f"validatingwebhookconfiguration/{names.MANAGER}"
    without = '[{"op": "remove", "path": "/webhooks/0"}]'
    installed.kubectl("patch", webhooks, "--type=json", "-p", without)
    installed.plane.wait_until("it is asked no longer", "create", "-f", str(file))
    installed.kubectl("delete", "ckpt", "nightly", "--wait=false")
    by_hand = '{"metadata": {"finalizers": null}}'
    installed.kubectl("patch", "ckpt", "nightly", "--type=merge", "-p", by_hand)
    assert installed.kubectl("get", "ckpt", "--ignore-not-found").stdout == ""
