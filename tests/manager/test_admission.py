"""Who may make which objects, as the API server says of them."""

from __future__ import annotations

from typing import Any

import pytest

from grit_runtime.errors import PermissionDeniedError
from grit_runtime.manager import admission, api, moves, pods
from grit_runtime.manager.nodes import Nodes
from grit_runtime.manager.pod_fields import PodFields
from tests.manager.api_server import NAMESPACE, Server, asked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.manager.cluster import Cluster, Object

EVERYWHERE = ""
URL = {"url": "s3://bucket/kept"}


class Rights(Server):
    """A server that allows what it is told to: verb, plural and namespace."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses: set[tuple[str, str, str]] = set()

    def put(self, plural: str, one: Object) -> Object:
        if plural != "subjectaccessreviews":
            return super().put(plural, one)
        assert one["spec"]["user"] == "jane"
        asks = one["spec"]["resourceAttributes"]
        right = asks["verb"], asks["resource"], asks["namespace"]
        return {**one, "status": {"allowed": right not in self.refuses}}


@pytest.fixture
def server() -> Rights:
    server = Rights()
    meta = {"name": "trainer", "namespace": NAMESPACE, "uid": "trainer-uid"}
    spec = {"runtimeClassName": pods.RUNTIME_CLASS, "nodeName": "node-a"}
    server.put("pods", {"metadata": meta, "spec": spec, "status": {"phase": "Running"}})
    return server


def review(server: Server, kind: str, spec: Object, **meta: Any) -> None:
    """What is said of a new object of jane's. PermissionDeniedError if she may not make it."""
    made = {"metadata": {"name": "new", "namespace": NAMESPACE, **meta}, "spec": spec}
    request = {
        "kind": {"kind": kind},
        "namespace": NAMESPACE,
        "object": made,
        "userInfo": {"username": "jane"},
    }

    async def decide(cluster: Cluster) -> None:
        decisions = admission.Admission(cluster, Nodes(cluster), PodFields(cluster), "/mnt")
        await decisions.object(request)

    asked(server, decide)


KINDS = [
    ("Checkpoint", {"podName": "trainer"}),
    ("Migration", {"podName": "trainer"}),
    ("CheckpointSchedule", {"podName": "trainer", "interval": "1h"}),
]


@pytest.mark.parametrize(("kind", "spec"), KINDS)
def test_a_store_is_named_by_who_may_have_checkpoints_anywhere(
    server: Rights, kind: str, spec: Object
) -> None:
    review(server, kind, spec | {"storage": URL})
    server.refuses = {("create", "checkpoints", EVERYWHERE)}
    with pytest.raises(
        PermissionDeniedError,
        match=r"user 'jane' may not create checkpoints\.kaito\.sh in all namespaces, as storage",
    ):
        review(server, kind, spec | {"storage": URL})
    review(server, kind, spec)


MOVE: Object = {
    "apiVersion": api.API_VERSION,
    "kind": "Migration",
    "name": "move",
    "uid": "move-uid",
}
MOVE |= {"controller": True}


@pytest.mark.parametrize(
    "meta", [{"ownerReferences": [MOVE]}, {"annotations": {moves.KNOWN: ""}}, {}], ids=str
)
def test_a_restore_of_a_move_is_made_by_who_may_delete_pods(
    server: Rights, meta: dict[str, Any]
) -> None:
    now = {"phase": api.CHECKPOINTED, "manifestDigest": "sha256:1"}
    kept = {"metadata": {"name": "nightly", "namespace": NAMESPACE}, "spec": {}, "status": now}
    server.put("checkpoints", kept)
    spec = {"checkpointName": "nightly", "selector": {"matchLabels": {"app": "trainer"}}}
    review(server, "Restore", spec, **meta)
    server.refuses = {("delete", "pods", NAMESPACE)}
    if meta:
        with pytest.raises(PermissionDeniedError, match="'jane' may not delete pods in namespace"):
            review(server, "Restore", spec, **meta)
    else:
        review(server, "Restore", spec)
