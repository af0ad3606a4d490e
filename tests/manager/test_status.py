"""What is written of an object, and when."""

from __future__ import annotations

from typing import Any

import kopf
import pytest
from kopf._core.engines import posting

from grit_runtime.errors import ConflictError, NotFoundError
from grit_runtime.manager import api
from grit_runtime.manager import cluster as kube
from grit_runtime.manager.status import Status
from tests.manager.api_server import NAMESPACE, Server, asked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from grit_runtime.manager.cluster import Cluster

    Work = Callable[[Status, Cluster], Awaitable[None]]


@pytest.fixture(autouse=True)
def no_events() -> None:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    posting.settings_var.set(settings)


@pytest.fixture
def server() -> Server:
    server = Server()
    meta = {"name": "nightly", "namespace": NAMESPACE, "uid": "nightly-uid"}
    spec = {"podName": "trainer"}
    server.put("checkpoints", {"kind": "Checkpoint", "metadata": meta, "spec": spec})
    return server


def told(server: Server, work: Work) -> dict[str, Any]:
    """The status on the server after the *work*."""

    async def scenario(cluster: Cluster) -> None:
        found = await cluster.get(kube.CHECKPOINTS, NAMESPACE, "nightly")
        await work(Status(cluster, kube.CHECKPOINTS, found), cluster)

    asked(server, scenario)
    status: dict[str, Any] = server.get("checkpoints", "nightly").get("status") or {}
    return status


def test_a_phase_that_passes_is_told_by_the_next(server: Server) -> None:
    async def work(status: Status, _: Cluster) -> None:
        status.pass_through(api.CREATED)
        status.pass_through(api.PENDING, nodeName="node-a")
        assert "status" not in server.get("checkpoints", "nightly")
        await status.enter(api.CHECKPOINTING)

    now = told(server, work)
    assert (now["phase"], now["nodeName"]) == (api.CHECKPOINTING, "node-a")
    assert set(now["durations"]) == {api.CREATED, api.PENDING}
    assert {one["type"] for one in now["conditions"] if one["status"] == "True"} >= {
        api.CREATED,
        api.PENDING,
        api.CHECKPOINTING,
    }


def test_a_phase_that_passes_is_told_by_a_failure_and_by_a_note(server: Server) -> None:
    async def fail(status: Status, _: Cluster) -> None:
        status.pass_through(api.CREATED)
        await status.fail(NotFoundError("pod default/trainer does not exist"))

    now = told(server, fail)
    assert (now["phase"], now["reason"]) == (api.FAILED, "NotFound")
    assert now["startTime"]


def test_a_note_tells_a_phase_that_has_not_passed_after_all(server: Server) -> None:
    async def note(status: Status, _: Cluster) -> None:
        status.pass_through(api.PENDING, nodeName="node-a")
        await status.note(message="waits for a claim")

    now = told(server, note)
    assert (now["phase"], now["message"]) == (api.PENDING, "waits for a claim")


def test_who_annotates_an_object_is_not_in_the_way(server: Server) -> None:
    async def work(status: Status, cluster: Cluster) -> None:
        status.pass_through(api.CREATED)
        annotated = {"metadata": {"annotations": {"somebody": "else"}}}
        await cluster.patch(kube.CHECKPOINTS, NAMESPACE, "nightly", annotated)
        await status.enter(api.CHECKPOINTING)
        await cluster.patch(kube.CHECKPOINTS, NAMESPACE, "nightly", annotated | {"kind": "x"})
        await status.note(message="goes on")

    assert told(server, work)["message"] == "goes on"


def test_somebody_who_goes_on_with_an_object_is(server: Server) -> None:
    async def work(status: Status, cluster: Cluster) -> None:
        status.pass_through(api.CREATED)
        of_another = {"status": {"phase": api.CHECKPOINTING, "phaseTime": "then"}}
        await cluster.patch(kube.CHECKPOINTS, NAMESPACE, "nightly", of_another, status=True)
        with pytest.raises(ConflictError, match="somebody else has gone on with it"):
            await status.enter(api.PENDING)

    assert told(server, work)["phaseTime"] == "then"


def test_an_own_write_whose_answer_was_lost_is_not_taken_for_somebody_elses(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(status: Status, cluster: Cluster) -> None:
        patch = cluster.patch

        async def twice(*place: Any, **how: Any) -> Any:
            monkeypatch.undo()
            await patch(*place, **how)
            return await patch(*place, **how)  # as whoever has heard no answer to the first

        monkeypatch.setattr(cluster, "patch", twice)
        await status.enter(api.CREATED)
        await status.enter(api.PENDING)

    assert told(server, work)["phase"] == api.PENDING
