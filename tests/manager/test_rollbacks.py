"""Sources that are held still, and what is undone for them, and what is not."""

from __future__ import annotations

import asyncio
from typing import Any

import kopf
import pytest
from kopf._core.engines import posting

from grit_runtime.manager import api, checkpoints, claims, fencing, moves, pods, rollbacks, targets
from grit_runtime.manager.agents import Access, Agents
from grit_runtime.manager.nodes import Nodes
from grit_runtime.manager.world import World
from tests.manager.api_server import NAMESPACE, Refusal, Server, asked, serving

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from grit_runtime.manager.cluster import Cluster, Object

NODE: Object = {"metadata": {"name": "node-a"}}
DIGEST = "sha256:1234"
PAST = "2026-01-01T00:00:00Z"


def world(cluster: Cluster) -> World:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    posting.settings_var.set(settings)
    nobody = Agents(cluster, Access("grit-system", 1, b"", ""))
    return World(cluster, nobody, Nodes(cluster), "/mnt/grit-agent")


def held(server: Server) -> None:
    """A pod that is held by a Checkpoint whose minute has passed; its node does not answer."""
    server.put("nodes", NODE)
    meta = {"name": "trainer", "namespace": NAMESPACE, "uid": "trainer-uid"}
    server.put("pods", {"metadata": meta, "spec": {"nodeName": "node-a"}, "status": {}})
    status: dict[str, Any] = {
        "phase": api.CHECKPOINTING,
        "nodeName": "node-a",
        "podName": "trainer",
        "podUID": "trainer-uid",
    }
    meta = {"name": "held", "namespace": NAMESPACE, "uid": "held-uid", "creationTimestamp": PAST}
    spec = {"podName": "trainer", "after": "frozen", "timeoutSeconds": 60}
    server.put(
        "checkpoints", {"kind": "Checkpoint", "metadata": meta, "spec": spec, "status": status}
    )


def fenced(server: Server) -> None:
    annotations = {fencing.FENCED: "true"}
    conditions = [{"type": "Ready", "status": "Unknown"}]
    meta = {"name": "node-a", "annotations": annotations}
    server.put("nodes", {"metadata": meta, "status": {"conditions": conditions}})


def deleted(server: Server) -> None:
    server.remove("pods", NAMESPACE, "trainer")


@pytest.mark.parametrize("freed", [fenced, deleted])
def test_a_checkpoint_fails_once_no_pod_is_held_for_it(freed: Callable[[Server], None]) -> None:
    server = Server()
    held(server)

    async def scenario() -> Object:
        async with serving(server) as (_, cluster):
            running = asyncio.ensure_future(checkpoints.run(world(cluster), NAMESPACE, "held"))
            while "held still" not in server.get("checkpoints", "held")["status"].get(
                "message", ""
            ):
                assert not running.done(), running
                await asyncio.sleep(0.02)
            assert server.get("checkpoints", "held")["status"]["phase"] == api.CHECKPOINTING
            freed(server)
            return await running

    status = asyncio.run(scenario())
    assert status["phase"] == api.FAILED
    assert status["message"].startswith("not done within 60 s (timeoutSeconds)")
    assert "held" not in status["message"]


def test_a_source_that_no_node_takes_back_is_said_to_be_in_its_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(moves, "_PLACED_S", 0.1)
    server = Server()
    owner: Object = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "set"}
    owner |= {"uid": "set-uid", "controller": True}
    spec = {"runtimeClassName": pods.RUNTIME_CLASS, "nodeName": "node-a"}
    meta = {"name": "set-0", "namespace": NAMESPACE, "ownerReferences": [owner]}
    again = meta | {
        "labels": {targets.LABEL: targets.label("move-back")},
        "annotations": {pods.MANIFEST_DIGEST: DIGEST},
    }
    why = {"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}
    server.put("pods", {"metadata": again, "spec": spec, "status": {"conditions": [why]}})
    source: Object = {"metadata": meta | {"uid": "gone"}, "spec": spec}
    move = moves.Move(NAMESPACE, "move", "move", DIGEST, source, "node-a")

    said = asked(server, lambda cluster: rollbacks.roll_back(world(cluster), move))
    assert said == (
        "pod default/set-0 is not back: no node has taken the new pod for 0.1 s (timeoutSeconds): "
        "0/2 nodes are available; its state is in Checkpoint move"
    )
    assert [one["metadata"]["name"] for one in server.of("restores")] == ["move-back"]


def moved(owner: Object | None = None) -> moves.Move:
    """A pod that is to go on elsewhere by the name "move"; it is not there any more."""
    meta: Object = {"name": "trainer", "namespace": NAMESPACE, "uid": "trainer-uid"}
    if owner:
        meta |= {"ownerReferences": [owner], "labels": {"controller-uid": "job-uid"}}
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
    source = {"metadata": meta, "spec": {"nodeName": "node-a", "volumes": volumes}}
    return moves.Move(NAMESPACE, "move", "move", DIGEST, source, "node-a")


def of_restore(name: str, digest: str) -> Object:
    labels, annotations = {targets.LABEL: "move"}, {pods.MANIFEST_DIGEST: digest}
    meta = {"name": name, "namespace": NAMESPACE, "labels": labels, "annotations": annotations}
    return {"metadata": meta, "spec": {"nodeName": "node-b"}, "status": {}}


def test_only_pods_of_the_very_checkpoint_are_ended() -> None:
    server = Server()
    server.put("pods", of_restore("of-an-earlier-move", "sha256:earlier"))
    server.put("pods", of_restore("target", DIGEST))
    said = asked(server, lambda cluster: rollbacks.roll_back(world(cluster), moved()))
    assert said == "pod default/trainer is gone; its state is in Checkpoint move"
    assert [one["metadata"]["name"] for one in server.of("pods")] == ["of-an-earlier-move"]


def test_a_job_has_let_go_of_its_pod_when_that_is_deleted() -> None:
    server = Server()
    owner: Object = {"apiVersion": "batch/v1", "kind": "Job", "name": "job", "uid": "job-uid"}
    move = moved(owner | {"controller": True})
    server.put("pods", move.source | {"status": {"phase": "Running"}})
    meta = {"name": "data", "namespace": NAMESPACE}
    spec = {"accessModes": ["ReadWriteOnce"], "volumeName": "data"}
    server.put("persistentvolumeclaims", {"metadata": meta, "spec": spec})
    server.put("persistentvolumes", {"metadata": {"name": "data"}, "spec": {"csi": {}}})
    server.put("pods", of_restore("target", DIGEST))  # a manager has made it, and was killed
    seen: list[Object] = []

    def note(method: str, plural: str) -> None:
        if (method, plural) == ("DELETE", "pods"):
            seen.append(server.get("pods", "trainer")["metadata"]["labels"])

    server.before = note
    asked(server, lambda cluster: moves.place(world(cluster), move))
    assert seen == [{}]
    assert [one["metadata"]["name"] for one in server.of("pods")] == ["target"]


def submitting(server: Server, message: str) -> None:
    """A Checkpoint with autoMigration whose pod is gone."""
    status = {
        "phase": api.SUBMITTING,
        "message": message,
        "reason": "NoNode",
        "nodeName": "node-a",
        "podName": "trainer",
        "podUID": "trainer-uid",
        "manifestDigest": DIGEST,
        "podTemplate": {"metadata": {}, "spec": {"containers": []}},
    }
    meta = {"name": "move", "namespace": NAMESPACE, "uid": "move-uid"}
    spec = {"podName": "trainer", "autoMigration": True}
    server.put(
        "checkpoints", {"kind": "Checkpoint", "metadata": meta, "spec": spec, "status": status}
    )


def test_what_one_manager_has_begun_to_undo_the_next_one_does_not_begin_anew() -> None:
    server = Server()
    submitting(server, "no node can take the pod; the source is held still: it is given back")
    restored = {"phase": api.RESTORED, "nodeName": "node-b", "targetPod": "target"}
    own = {"name": "move", "namespace": NAMESPACE, "ownerReferences": [{"uid": "move-uid"}]}
    from_it = {"checkpointName": "move"}  # it came late, and its pod has been ended
    server.put("restores", {"metadata": own, "spec": from_it, "status": restored})
    status = asked(server, lambda cluster: checkpoints.run(world(cluster), NAMESPACE, "move"))
    assert (status["phase"], status["reason"]) == (api.FAILED, "NoNode")
    assert status["message"] == (
        "no node can take the pod; pod default/trainer is gone; its state is in Checkpoint move"
    )
    assert server.made == []


def test_a_source_that_may_not_be_deleted_is_said_to_be_left_until_it_may() -> None:
    server = Server()
    submitting(server, "")
    server.put("pods", moved().source)
    restored = {"phase": api.RESTORED, "nodeName": "node-b", "targetPod": "target"}
    own = {"name": "move", "namespace": NAMESPACE, "ownerReferences": [{"uid": "move-uid"}]}
    from_it = {"checkpointName": "move"}
    server.put("restores", {"metadata": own, "spec": from_it, "status": restored})
    server.refused["DELETE", "pods"] = Refusal(403, "Forbidden", "pods are protected here")

    async def scenario() -> Object:
        async with serving(server) as (_, cluster):
            running = asyncio.ensure_future(checkpoints.run(world(cluster), NAMESPACE, "move"))
            while "protected" not in server.get("checkpoints", "move")["status"]["message"]:
                assert not running.done(), running
                await asyncio.sleep(0.02)
            assert server.get("checkpoints", "move")["status"]["phase"] == api.SUBMITTING
            del server.refused["DELETE", "pods"]
            return await running

    assert asyncio.run(scenario())["phase"] == api.SUBMITTED
    assert server.of("pods") == []


@pytest.mark.parametrize("digest", [DIGEST, "sha256:earlier"])
def test_a_restore_by_hand_is_the_move_s_only_from_the_very_checkpoint(digest: str) -> None:
    server = Server()
    noted = claims.noted(api.CheckpointStatus(manifest_digest=digest, pod_uid="trainer-uid"))
    meta = {"name": "move", "namespace": NAMESPACE, "annotations": noted}
    now = {"phase": api.RESTORED, "targetPod": "clone"}
    server.put("restores", {"metadata": meta, "spec": {"checkpointName": "move"}, "status": now})
    found = asked(server, lambda cluster: moves.verified(world(cluster), moved()))
    assert found == (now if digest == DIGEST else None)


LIVES: dict[str, tuple[str, Object, str]] = {
    "a pod of its digest": ("pods", {pods.MANIFEST_DIGEST: DIGEST}, "other"),
    "a pod of another's": ("pods", {pods.MANIFEST_DIGEST: "sha256:other"}, ""),
    "a pod with its directory": (
        "pods",
        {pods.CHECKPOINT: "/mnt/grit-agent/default/move"},
        "other",
    ),
    "a pod with its name": ("pods", {pods.RESTORE_NAME: "move"}, "other"),
    "a pod with none of it": ("pods", {}, ""),
    "a Restore that is claimed": ("restores", {targets.SELECTED: "true"}, "of Restore other"),
    "a Restore that waits": ("restores", {}, ""),
}


@pytest.mark.parametrize(("plural", "annotations", "life"), LIVES.values(), ids=LIVES)
def test_no_second_life_begins_beside(plural: str, annotations: Object, life: str) -> None:
    server = Server()
    submitting(server, "")
    server.put("pods", moved().source | {"status": {}})
    meta = {"name": "other", "namespace": NAMESPACE, "annotations": annotations}
    server.put(plural, {"metadata": meta, "spec": {"checkpointName": "move"}})
    found = server.get("checkpoints", "move")
    assert asked(server, lambda cluster: checkpoints._life(world(cluster), found)) == life


@pytest.mark.parametrize(
    "other", [{"status": {"phase": "Failed"}}, {"metadata": {"creationTimestamp": PAST}}]
)
def test_what_was_never_restored_from_it_is_no_life(other: Object) -> None:
    server = Server()
    server.put("nodes", NODE)
    submitting(server, "")
    annotations = {pods.RESTORE_NAME: "move"}
    meta = {"name": "other", "namespace": NAMESPACE, "annotations": annotations}
    server.put("pods", {"metadata": meta, "spec": {}})
    server.change("pods", "other", other)
    found = server.get("checkpoints", "move")
    assert asked(server, lambda cluster: checkpoints._life(world(cluster), found)) == ""
