"""What an eviction waits for, and what it does not."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from grit_runtime.errors import BusyError, NotFoundError
from grit_runtime.manager import api, evictions, last_checkpoints, retention, targets
from grit_runtime.manager import cluster as kube
from tests.manager import api_server
from tests.manager.api_server import Refusal, Server

REQUEST = {"namespace": "default", "name": "trainer"}


def pod(uid: str = "12345678-uid", **annotations: str) -> dict[str, Any]:
    meta = {"name": "trainer", "namespace": "default", "uid": uid, "annotations": annotations}
    spec = {"runtimeClassName": "grit", "nodeName": "node-a", "containers": []}
    return {"metadata": meta, "spec": spec, "status": {"phase": "Running"}}


def schedule() -> dict[str, Any]:
    meta = {"name": "last", "namespace": "default", "uid": "schedule-uid"}
    return {"metadata": meta, "spec": {"podName": "trainer", "triggers": ["PodEviction"]}}


def ago(minutes: int) -> str:
    return (datetime.now(UTC) - timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")


def taken(**status: str) -> dict[str, Any]:
    """A last checkpoint that was begun an hour ago."""
    began = int(datetime.now(UTC).timestamp() / 600) - 6
    meta = {
        "name": f"trainer-last-evicted-12345678-{began}",
        "namespace": "default",
        "labels": {retention.SCHEDULE: "schedule-uid"},
    }
    spec = {"podName": "trainer", "sourcePodUID": "12345678-uid"}
    return {"metadata": meta, "spec": spec, "status": status}


def reviewed(server: Server, cluster: kube.Cluster, **annotations: str) -> Any:
    server.put("pods", pod(**annotations))
    return evictions.review(cluster, REQUEST)


LET_GO = {evictions.ON_EVICTION: evictions.LET_GO}


@pytest.mark.parametrize("phase", [api.CHECKPOINTED, api.FAILED])
def test_a_last_checkpoint_that_took_an_hour_is_not_taken_again(phase: str) -> None:
    async def evict() -> None:
        async with api_server.serving() as (server, cluster):
            server.put("checkpointschedules", schedule())
            server.put("checkpoints", taken(phase=phase, completionTime=ago(2)))
            assert await reviewed(server, cluster, **LET_GO) == ()
            assert not server.made

    asyncio.run(evict())


def test_a_last_checkpoint_that_is_under_way_for_long_is_waited_for() -> None:
    async def evict() -> None:
        async with api_server.serving() as (server, cluster):
            server.put("checkpointschedules", schedule())
            begun = server.put("checkpoints", taken(phase=api.CHECKPOINTING))
            with pytest.raises(BusyError, match=begun["metadata"]["name"]):
                await reviewed(server, cluster, **LET_GO)
            assert not server.made

    asyncio.run(evict())


def test_a_last_checkpoint_is_taken_anew_when_the_one_there_is_old() -> None:
    async def evict() -> None:
        async with api_server.serving() as (server, cluster):
            server.put("checkpointschedules", schedule())
            server.put("checkpoints", taken(phase=api.CHECKPOINTED, completionTime=ago(11)))
            with pytest.raises(BusyError, match="is being checkpointed"):
                await reviewed(server, cluster, **LET_GO)
            (made,) = server.made
            assert made["spec"]["sourcePodUID"] == "12345678-uid"

    asyncio.run(evict())


@pytest.mark.parametrize(
    "refusal", [Refusal(422, "FailedPrecondition"), Refusal(403, "Other"), Refusal(400, "")]
)
def test_a_pod_whose_migration_is_refused_for_good_is_let_go_with_the_reason(
    refusal: Refusal,
) -> None:
    async def evict() -> None:
        async with api_server.serving() as (server, cluster):
            server.refused["POST", "migrations"] = refusal
            (warning,) = await reviewed(server, cluster)
            assert warning == (
                "pod default/trainer goes: it could not be moved: the API server refuses: it is "
                "refused"
            )

    asyncio.run(evict())


@pytest.mark.parametrize(
    ("minutes", "phase", "waits"),
    [
        (1, api.RESTORING, True),
        (1, api.FAILED, False),
        (11, api.RESTORING, False),  # a node could never be drained
    ],
)
def test_a_pod_that_is_being_restored_is_waited_for_ten_minutes(
    minutes: int,
    phase: str,
    waits: bool,  # noqa: FBT001
) -> None:
    async def evict() -> None:
        async with api_server.serving() as (server, cluster):
            one = pod()
            one["metadata"]["labels"] = {targets.LABEL: "nightly"}
            one["metadata"]["creationTimestamp"] = ago(minutes)
            one["status"]["phase"] = "Pending"
            server.put("pods", one)
            meta = {"name": "nightly", "namespace": "default"}
            status = {"phase": phase, "targetPodUID": one["metadata"]["uid"]}
            server.put("restores", {"metadata": meta, "spec": {}, "status": status})
            if waits:
                with pytest.raises(BusyError, match="is just arriving by Restore nightly"):
                    await evictions.review(cluster, REQUEST)
            else:
                assert await evictions.review(cluster, REQUEST) == ()

    asyncio.run(evict())


def test_an_object_that_cannot_be_read_keeps_no_pod() -> None:
    async def evict() -> None:
        async with api_server.serving() as (server, cluster):
            meta = {"name": "later", "namespace": "default"}
            for plural in ("migrations", "checkpoints", "checkpointschedules"):
                server.put(plural, {"metadata": dict(meta), "spec": {"podName": 7}})
            assert await reviewed(server, cluster, **LET_GO) == ()

    asyncio.run(evict())


def test_a_refusal_that_may_pass_is_waited_for() -> None:
    async def evict() -> None:
        async with api_server.serving() as (server, cluster):
            server.refused["POST", "migrations"] = Refusal(422, "Unavailable")
            with pytest.raises(BusyError, match="it is refused: try again"):
                await reviewed(server, cluster)

    asyncio.run(evict())


def test_a_server_that_does_not_answer_in_time_is_asked_again() -> None:
    async def evict() -> None:
        async with api_server.serving() as (server, cluster):
            server.refused["POST", "migrations"] = Refusal(503, "")
            async with asyncio.timeout(5):  # the webhook's, after which the pod is lost
                with pytest.raises(BusyError, match="try again"):
                    await reviewed(server, cluster)

    asyncio.run(evict())


def test_a_refusal_of_a_pod_that_has_just_gone_lets_no_other_go() -> None:
    class Replaced(Server):
        """By the time that the Migration is refused, another pod has the name."""

        def _created(self, *_: Any) -> Any:
            self.put("pods", pod("another-uid"))
            return api_server.refused(Refusal(422, "PodNotReady"))

    async def evict() -> None:
        async with api_server.serving(Replaced()) as (server, cluster):
            with pytest.raises(NotFoundError, match="another"):
                await reviewed(server, cluster)

    asyncio.run(evict())


def test_a_last_checkpoint_that_is_refused_for_good_holds_nobody_up() -> None:
    async def evict() -> None:
        async with api_server.serving() as (server, cluster):
            server.put("checkpointschedules", schedule())
            server.refused["POST", "checkpoints"] = Refusal(422, "NotFound", "no claim")
            (warning,) = await reviewed(server, cluster, **LET_GO)
            assert warning == (
                "pod default/trainer goes without a last checkpoint of CheckpointSchedule last: "
                "the API server refuses: no claim"
            )
            going = [pod()]
            assert await last_checkpoints.require(cluster, "default", going, "PodEviction")

    asyncio.run(evict())
