"""Events on their way to a containerd that is slow, picky or away: a real ttrpc server."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager

import pytest
from google.protobuf.empty_pb2 import Empty

from grit_runtime.errors import FailedPreconditionError, UnavailableError
from grit_runtime.proto import event_forwarding_pb2 as forwarding
from grit_runtime.proto import task_events_pb2 as events
from grit_runtime.shim import events as shim_events
from grit_runtime.shim.events import REFUSALS_MAX, SERVICE, Publisher
from grit_runtime.shim.transport import Method, Server
from grit_runtime.wire.well_known import unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from pathlib import Path

TIMEOUT_S = 20


class Heard:
    """Takes events as containerd does; *answers* are what it does instead, one call each."""

    def __init__(self, *answers: Callable[[], Awaitable[None]]) -> None:
        self.calls: list[str] = []
        self._answers = list(answers)

    async def take(self, request: forwarding.ForwardRequest) -> Empty:
        self.calls.append(unpack(request.envelope.event, events.TaskPaused).container_id)
        if self._answers:
            await self._answers.pop(0)()
        return Empty()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shim_events, "RETRY_AFTER_S", 0.01)
    monkeypatch.setattr(shim_events, "TIMEOUT_S", 0.1)


def run(scenario: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, TIMEOUT_S))


@asynccontextmanager
async def containerd(path: Path, heard: Heard) -> AsyncIterator[None]:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    server = Server({(SERVICE, "Forward"): Method(forwarding.ForwardRequest, heard.take)})
    await server.listen(listener)
    yield
    await server.close()
    path.unlink()


def publish(publisher: Publisher, *names: str) -> None:
    for name in names:
        publisher.publish(events.TaskPaused(container_id=name))


async def refuse() -> None:
    raise FailedPreconditionError("not this one")


async def be_unavailable() -> None:
    raise UnavailableError("later")


async def hang() -> None:
    await asyncio.sleep(0.15)


def test_events_arrive_in_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        heard = Heard()
        names = [f"{number}" for number in range(100)]
        async with containerd(tmp_path / "socket", heard):
            publisher = Publisher(str(tmp_path / "socket"), "test")
            publish(publisher, *names)
            await publisher.flush(TIMEOUT_S)
        assert heard.calls == names

    run(scenario())


def test_events_wait_until_containerd_is_there_and_when_it_comes_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        heard = Heard()
        publisher = Publisher(str(tmp_path / "socket"), "test")
        publish(publisher, "before")
        await asyncio.sleep(0.05)
        async with containerd(tmp_path / "socket", heard):
            await publisher.flush(TIMEOUT_S)
        publish(publisher, "between", "and")
        await asyncio.sleep(0.05)
        async with containerd(tmp_path / "socket", heard):
            await publisher.flush(TIMEOUT_S)
        assert heard.calls == ["before", "between", "and"]

    run(scenario())


def test_an_event_that_is_refused_holds_up_the_others_for_so_long_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        heard = Heard(*[refuse] * REFUSALS_MAX)
        async with containerd(tmp_path / "socket", heard):
            publisher = Publisher(str(tmp_path / "socket"), "test")
            publish(publisher, "bad", "good")
            await publisher.flush(TIMEOUT_S)
        assert heard.calls == [*["bad"] * REFUSALS_MAX, "good"]

    run(scenario())


@pytest.mark.parametrize("trouble", [be_unavailable, hang])
def test_an_event_waits_for_as_long_as_containerd_has_trouble(
    tmp_path: Path, trouble: Callable[[], Awaitable[None]]
) -> None:
    async def scenario() -> None:
        times = REFUSALS_MAX + 1
        heard = Heard(*[trouble] * times)
        async with containerd(tmp_path / "socket", heard):
            publisher = Publisher(str(tmp_path / "socket"), "test")
            publish(publisher, "patient", "next")
            await publisher.flush(TIMEOUT_S)
        assert heard.calls == [*["patient"] * (times + 1), "next"]

    run(scenario())


def test_of_too_many_that_wait_the_oldest_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shim_events, "QUEUE_LIMIT", 3)

    async def scenario() -> None:
        heard = Heard()
        publisher = Publisher(str(tmp_path / "socket"), "test")
        publish(publisher, "first")
        await asyncio.sleep(0.05)  # it is being sent when it goes
        publish(publisher, "2", "3", "4", "5")
        async with containerd(tmp_path / "socket", heard):
            await publisher.flush(TIMEOUT_S)
        assert heard.calls in (["3", "4", "5"], ["first", "3", "4", "5"])

    run(scenario())


def test_a_flush_does_not_wait_for_ever(tmp_path: Path) -> None:
    async def scenario() -> None:
        publisher = Publisher(str(tmp_path / "socket"), "test")
        await publisher.flush(TIMEOUT_S)  # nothing waits
        publish(publisher, "lost")
        await publisher.flush(0.05)

    run(scenario())
