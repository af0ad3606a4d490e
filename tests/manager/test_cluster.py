"""What the manager makes of the API server's answers."""

from __future__ import annotations

import asyncio
import time

import pytest

from grit_runtime.errors import (
    ConflictError,
    FailedPreconditionError,
    GritError,
    InvalidArgumentError,
    PermissionDeniedError,
    PodStateError,
    UnavailableError,
)
from grit_runtime.manager import cluster as kube
from tests.manager import api_server
from tests.manager.api_server import Refusal


def pod(uid: str) -> dict[str, object]:
    return {"metadata": {"name": "a", "namespace": "default", "uid": uid}}


def test_what_has_the_name_of_one_that_is_to_go_stays() -> None:
    async def delete() -> None:
        async with api_server.serving() as (server, cluster):
            server.put("pods", pod("new"))
            await cluster.delete(kube.PODS, "default", "a", "old")
            assert server.of("pods")
            await cluster.delete(kube.PODS, "default", "a", "new")
            assert not server.of("pods")
            await cluster.delete(kube.PODS, "default", "a", "new")

    asyncio.run(delete())


def test_a_deletion_that_is_asked_for_again_leaves_the_successor() -> None:
    """A StatefulSet has made the next pod while the answer was lost."""

    async def delete() -> None:
        async with api_server.serving() as (server, cluster):
            server.put("pods", pod("old"))

            def lose(method: str, _: str) -> Refusal | None:
                if method != "DELETE":
                    return None
                server.before = lambda _method, _plural: None
                server.put("pods", pod("new"))
                return Refusal(503, "ServiceUnavailable")

            server.before = lose
            await cluster.delete(kube.PODS, "default", "a", "old", grace_s=0)
            assert [one["metadata"]["uid"] for one in server.of("pods")] == ["new"]

    asyncio.run(delete())


@pytest.mark.parametrize("refusal", [Refusal(422, "Invalid"), Refusal(400, "BadRequest")])
def test_a_deletion_that_is_refused_is_not_taken_for_done(refusal: Refusal) -> None:
    async def delete() -> None:
        async with api_server.serving() as (server, cluster):
            server.put("pods", pod("uid-1"))
            server.refused["DELETE", "pods"] = refusal
            with pytest.raises(InvalidArgumentError, match="it is refused"):
                await cluster.delete(kube.PODS, "default", "a", "uid-1")

    asyncio.run(delete())


def test_a_patch_of_one_that_is_another_by_now_is_a_conflict() -> None:
    async def patch() -> None:
        async with api_server.serving() as (server, cluster):
            server.put("pods", pod("new"))
            with pytest.raises(ConflictError):
                await cluster.patch(kube.PODS, "default", "a", {"metadata": {"uid": "old"}})

    asyncio.run(patch())


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (Refusal(422, "PodNotReady"), PodStateError),  # as our webhooks say it
        (Refusal(422, "FailedPrecondition"), FailedPreconditionError),
        (Refusal(422, "Unavailable"), UnavailableError),
        (Refusal(422, "SomebodyElses"), InvalidArgumentError),
        (Refusal(400, ""), InvalidArgumentError),
        (Refusal(403, "SomebodyElses"), PermissionDeniedError),
        (Refusal(401, "Unauthorized"), UnavailableError),  # with the next token it may
    ],
)
def test_what_a_webhook_refuses_has_the_webhook_s_reason(
    refusal: Refusal, kind: type[GritError]
) -> None:
    async def create() -> None:
        async with api_server.serving() as (server, cluster):
            server.refused["POST", "pods"] = refusal
            with pytest.raises(GritError) as caught:
                await cluster.create(kube.PODS, pod(""))
            assert type(caught.value) is kind

    asyncio.run(create())


def test_a_watch_that_is_dead_without_a_word_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube, "SILENT_S", 0.2)

    async def watch() -> None:
        async with api_server.serving() as (server, cluster), asyncio.timeout(10):
            watched = cluster.watched(kube.PODS, "default")
            assert await anext(watched) == {}
            server.is_silent = True
            server.put("pods", pod("a"))
            while not await anext(watched):
                pass

    asyncio.run(watch())


@pytest.mark.parametrize("refusal", [Refusal(403, "Forbidden"), Refusal(429, "TooManyRequests")])
def test_a_watch_that_is_refused_is_asked_for_again_after_a_pause(
    refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube, "_RENEWED_S", 0.2)
    asked = []

    async def watch() -> None:
        async with api_server.serving() as (server, cluster), asyncio.timeout(10):
            server.refused["WATCH", "pods"] = refusal
            server.before = lambda method, _: asked.append(method)
            watched = cluster.watched(kube.PODS, "default")
            for _ in range(5):
                await anext(watched)

    begin = time.monotonic()
    asyncio.run(watch())
    assert asked == ["GET", "WATCH"] * 4 + ["GET"]
    assert time.monotonic() - begin > 4 * 0.1


def test_those_who_follow_wait_while_nothing_may_be_listed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kube, "_LONGEST_PAUSE_S", 0.05)

    async def follow() -> None:
        async with api_server.serving() as (server, cluster), asyncio.timeout(10):
            server.put("pods", pod("a"))
            server.refused["GET", "pods"] = Refusal(403, "Forbidden")
            followed = asyncio.ensure_future(anext(cluster.followed(kube.PODS, "default", "a")))
            await asyncio.sleep(0.3)
            del server.refused["GET", "pods"]
            assert list(await followed) == ["a"]

    asyncio.run(follow())
