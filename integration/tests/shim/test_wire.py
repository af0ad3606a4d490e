"""Our ttrpc against containerd's own, which is written in Go: it takes our calls, and both servers
answer what breaks a rule alike."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
import struct
import subprocess
import time
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from grit_runtime import errors
from grit_runtime.proto import containerd_types_pb2 as types
from grit_runtime.proto import event_forwarding_pb2 as forwarding
from grit_runtime.proto import task_events_pb2 as events
from grit_runtime.proto import ttrpc_pb2
from grit_runtime.shim import transport
from grit_runtime.shim.transport import Method, Server
from grit_runtime.wire.well_known import pack, timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from integration.tests.conftest import Nodes

CONTAINERD = Path("/run/containerd/containerd.sock.ttrpc")
SERVICE = "containerd.services.events.ttrpc.v1.Events"
NAMESPACE = "wire"
TIMEOUT_S = 30

REQUEST, RESPONSE, UNKNOWN = 1, 2, 9
TOO_MANY_BYTES = (4 << 20) + 1


def run(scenario: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, TIMEOUT_S))


def event(container_id: str) -> forwarding.ForwardRequest:
    envelope = types.Envelope(
        namespace=NAMESPACE,
        topic="/tasks/paused",
        timestamp=timestamp(time.time_ns()),
        event=pack(events.TaskPaused(container_id=container_id)),
    )
    return forwarding.ForwardRequest(envelope=envelope)


async def forward(
    path: Path, *requests: forwarding.ForwardRequest, method: str = "Forward"
) -> None:
    """Call *method* with each request, all at once on one connection."""
    with closing(await transport.connect(str(path))) as client:
        calls = [
            client.call(
                *(SERVICE, method, request, Empty),
                timeout_s=TIMEOUT_S,
                metadata={"containerd-namespace-ttrpc": NAMESPACE},
            )
            for request in requests
        ]
        await asyncio.gather(*calls)


def frame(stream_id: int, data: bytes = b"", *, kind: int = REQUEST) -> bytes:
    return struct.pack(">IIBB", len(data), stream_id, kind, 0) + data


def call(
    stream_id: int,
    *,
    service: str = SERVICE,
    method: str = "Forward",
    payload: bytes = event("call").SerializeToString(),
) -> bytes:
    """A call that is well, but for what is given."""
    request = ttrpc_pb2.Request(service=service, method=method, payload=payload)
    return frame(stream_id, request.SerializeToString())


def test_an_event_that_we_forward_is_in_containerds_stream(nodes: Nodes) -> None:
    with nodes.a.popen(
        ["ctr", "--namespace", NAMESPACE, "events"], stdout=subprocess.PIPE
    ) as stream:
        assert stream.stdout is not None
        deadline = time.monotonic() + TIMEOUT_S
        while not select.select([stream.stdout], [], [], 0.05)[0]:
            assert time.monotonic() < deadline
            run(forward(nodes.a.path(CONTAINERD), event("ours")))
        line = stream.stdout.readline()
        os.killpg(stream.pid, signal.SIGKILL)
    assert f'{NAMESPACE} /tasks/paused {{"container_id":"ours"}}' in line


def test_containerd_answers_many_calls_at_once(nodes: Nodes) -> None:
    requests = [event(f"many-{number}") for number in range(200)]
    run(forward(nodes.a.path(CONTAINERD), *requests))


def test_containerds_errors_are_ours(nodes: Nodes) -> None:
    path = nodes.a.path(CONTAINERD)
    with pytest.raises(errors.UnimplementedError, match="Backward"):
        run(forward(path, event("x"), method="Backward"))
    with pytest.raises(errors.InvalidArgumentError, match="namespace"):
        run(forward(path, forwarding.ForwardRequest(envelope=types.Envelope(topic="/x"))))


# What either server answers: the code told on each stream.
ANSWERS = {
    "unknown service": (call(1, service="containerd.task.v9.Task"), {1: 12}),
    "unknown method": (call(1, method="Backward"), {1: 12}),
    "request that is none": (frame(1, b"\xff"), {1: 3}),
    "payload that is none": (call(1, payload=b"\xff"), {1: 13}),
    "even stream": (call(2), {2: 3}),
    "stream 0": (call(0), {0: 3}),
    "even stream of any kind": (frame(2, kind=UNKNOWN), {2: 3}),
    "lower stream": (call(5) + call(3), {3: 3, 5: 0}),
    "unknown kind": (frame(1, b"new", kind=UNKNOWN), {}),
    "response": (frame(1, kind=RESPONSE), {}),
    "oversized": (frame(1, bytes(TOO_MANY_BYTES)), {1: 8}),
    "oversized of an unknown kind": (frame(2, bytes(TOO_MANY_BYTES), kind=UNKNOWN), {2: 8}),
}


async def answer(reader: asyncio.StreamReader) -> tuple[int, int]:
    """The next answer: its stream, and the code that this is told."""
    size_bytes, stream_id, kind, flags = struct.unpack(">IIBB", await reader.readexactly(10))
    assert (kind, flags) == (RESPONSE, 0)
    response = ttrpc_pb2.Response.FromString(await reader.readexactly(size_bytes))
    return stream_id, response.status.code


async def codes(path: Path, data: bytes, count: int) -> dict[int, int]:
    """What *count* streams are told when *data* is sent."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    told = dict([await answer(reader) for _ in range(count)])
    writer.close()
    await writer.wait_closed()
    return told


async def rest(path: Path, data: bytes) -> bytes:
    """What is still answered when *data* is sent and nothing more will be."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(data)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@asynccontextmanager
async def our_server(path: Path) -> AsyncIterator[Path]:
    async def take(_: forwarding.ForwardRequest) -> Empty:
        return Empty()

    server = Server({(SERVICE, "Forward"): Method(forwarding.ForwardRequest, take)})
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        await server.listen(listener)
        yield path
        await server.close()


@pytest.mark.parametrize(("data", "told"), ANSWERS.values(), ids=ANSWERS)
def test_both_servers_answer_alike_and_go_on(
    nodes: Nodes, tmp_path: Path, data: bytes, told: dict[int, int]
) -> None:
    async def scenario() -> None:
        expected = {**told, 101: 0}
        async with our_server(tmp_path / "ours") as ours:
            for path in (nodes.a.path(CONTAINERD), ours):
                assert await codes(path, data + call(101), len(expected)) == expected

    run(scenario())


def test_both_servers_take_a_stream_once(nodes: Nodes, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with our_server(tmp_path / "ours") as ours:
            for path in (nodes.a.path(CONTAINERD), ours):
                reader, writer = await asyncio.open_unix_connection(path)
                for code in (0, 3):
                    writer.write(call(1))
                    assert await answer(reader) == (1, code)
                writer.close()
                await writer.wait_closed()

    run(scenario())


# Not sent: data for a stream that there is not, which ends a containerd whose ttrpc is older than
# 1.2.8 (d5b5a20, a panic in the server).
@pytest.mark.parametrize("data", [b"\xff" * 64, call(1)[:-1], b"\0"], ids=["noise", "cut", "byte"])
def test_both_servers_hang_up_on_what_does_not_end(
    nodes: Nodes, tmp_path: Path, data: bytes
) -> None:
    async def scenario() -> None:
        async with our_server(tmp_path / "ours") as ours:
            for path in (nodes.a.path(CONTAINERD), ours):
                assert await rest(path, data) == b""
                assert await codes(path, call(1), 1) == {1: 0}

    run(scenario())
