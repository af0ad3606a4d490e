"""ttrpc on real sockets: calls of a client of ours, and of one that does as it likes."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from google.protobuf.empty_pb2 import Empty

from grit_runtime import errors
from grit_runtime.proto import task_pb2 as task
from grit_runtime.proto import ttrpc_pb2
from grit_runtime.shim import transport
from grit_runtime.shim.transport import Client, Method, Server
from grit_runtime.wire import ttrpc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from google.protobuf.message import Message

SERVICE = "containerd.task.v2.Task"
TIMEOUT_S = 20
RESPONSE = 2

# Connects to the socket at argv[1] under another user or group; prints all that it is sent.
STRANGER = """
import socket, sys
with socket.socket(socket.AF_UNIX) as client:
    client.connect(sys.argv[1])
    print(client.recv(1))
"""


def run(scenario: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, TIMEOUT_S))


@asynccontextmanager
async def served(path: Path, **methods: Method) -> AsyncIterator[Server]:
    """A server of *methods* at *path*, closed at the end."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    server = Server({(SERVICE, name): method for name, method in methods.items()})
    await server.listen(listener)
    yield server
    await server.close()


@asynccontextmanager
async def client_of(path: Path) -> AsyncIterator[Client]:
    client = await transport.connect(str(path))
    try:
        yield client
    finally:
        client.close()


async def state_of(client: Client, task_id: str, *, timeout_s: float = TIMEOUT_S) -> str:
    """The bundle that State tells."""
    request = task.StateRequest(id=task_id)
    answer = await client.call(
        SERVICE, "State", request, task.StateResponse, timeout_s=timeout_s, metadata={}
    )
    return answer.bundle


async def state(request: task.StateRequest) -> task.StateResponse:
    return task.StateResponse(bundle=f"/bundles/{request.id}")


STATE = Method(task.StateRequest, state)


def frame(stream_id: int, request: ttrpc_pb2.Request, *, flags: int = 0) -> bytes:
    data = request.SerializeToString()
    return struct.pack(">IIBB", len(data), stream_id, 1, flags) + data


def asked(method: str = "State", payload: bytes = b"", timeout_nano: int = 0) -> ttrpc_pb2.Request:
    return ttrpc_pb2.Request(
        service=SERVICE, method=method, payload=payload, timeout_nano=timeout_nano
    )


async def answer_on(reader: asyncio.StreamReader) -> tuple[int, ttrpc_pb2.Response]:
    """Stream and content of the next response."""
    size_bytes, stream_id, kind, _ = struct.unpack(">IIBB", await reader.readexactly(10))
    assert kind == RESPONSE
    return stream_id, ttrpc_pb2.Response.FromString(await reader.readexactly(size_bytes))


def test_a_call_is_answered(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "s", State=STATE), client_of(tmp_path / "s") as client:
            assert await state_of(client, "a") == "/bundles/a"
            assert await state_of(client, "b") == "/bundles/b"

    run(scenario())


def test_a_call_that_takes_long_holds_up_no_other_of_its_connection(tmp_path: Path) -> None:
    async def scenario() -> None:
        killed = asyncio.Event()

        async def wait(_: task.WaitRequest) -> task.WaitResponse:
            await killed.wait()
            return task.WaitResponse(exit_status=137)

        async def kill(_: task.KillRequest) -> Empty:
            killed.set()
            return Empty()

        methods = {"Wait": Method(task.WaitRequest, wait), "Kill": Method(task.KillRequest, kill)}
        async with served(tmp_path / "s", **methods), client_of(tmp_path / "s") as client:

            async def call(method: str, request: Message) -> task.WaitResponse:
                return await client.call(
                    SERVICE, method, request, task.WaitResponse, timeout_s=TIMEOUT_S, metadata={}
                )

            waiting = asyncio.create_task(call("Wait", task.WaitRequest()))
            await asyncio.sleep(0)
            await call("Kill", task.KillRequest())
            assert (await waiting).exit_status == 137

    run(scenario())


@pytest.mark.parametrize(
    ("raised", "told", "text"),
    [
        (errors.NotFoundError("no task x"), errors.NotFoundError, "no task x"),
        (errors.AlreadyExistsError("id x"), errors.AlreadyExistsError, "id x"),
        (errors.CommandError("runc: no"), errors.GritError, "runc: no"),
        (FileNotFoundError(2, "No such file", "/x"), errors.GritError, "/x: No such file"),
    ],
    ids=["not found", "already exists", "command", "system call"],
)
def test_a_client_is_told_the_error_of_a_handler(
    tmp_path: Path, raised: Exception, told: type[errors.GritError], text: str
) -> None:
    async def fail(_: task.StateRequest) -> NoReturn:
        raise raised

    async def scenario() -> None:
        methods = {"State": Method(task.StateRequest, fail)}
        async with served(tmp_path / "s", **methods), client_of(tmp_path / "s") as client:
            with pytest.raises(errors.GritError) as caught:
                await state_of(client, "x")
            assert type(caught.value) is told
            assert str(caught.value) == f"{tmp_path}/s: State: {text}"

    run(scenario())


@pytest.mark.parametrize(
    ("raised", "text"),
    [(RuntimeError("two\nlines"), "RuntimeError: two?lines"), (TimeoutError(), "TimeoutError: ")],
    ids=["any", "time"],
)
def test_a_bug_in_a_handler_is_told_and_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], raised: Exception, text: str
) -> None:
    async def fail(_: task.StateRequest) -> NoReturn:
        raise raised

    async def scenario() -> None:
        methods = {"State": Method(task.StateRequest, fail)}
        async with served(tmp_path / "s", **methods), client_of(tmp_path / "s") as client:
            with pytest.raises(errors.GritError, match=f"State: {re.escape(text)}$"):
                await state_of(client, "x")

    run(scenario())
    (line,) = capfd.readouterr().err.splitlines()
    assert 'level=error msg="handler failed" method=State trace=' in line
    assert "test_transport.py" in line


@pytest.mark.parametrize(
    ("request_", "flags", "code"),
    [
        (asked("Pids"), 0, 12),
        (ttrpc_pb2.Request(service="containerd.task.v9.Task", method="State"), 0, 12),
        (asked(), ttrpc.REMOTE_OPEN, 12),
        (asked(payload=b"\xff"), 0, 13),
    ],
    ids=["method", "service", "streaming", "payload"],
)
def test_what_no_handler_takes_is_refused(
    tmp_path: Path, request_: ttrpc_pb2.Request, flags: int, code: int
) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "s", State=STATE):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(frame(1, request_, flags=flags) + frame(3, asked()))
            stream_id, response = await answer_on(reader)
            assert (stream_id, response.status.code) == (1, code)
            stream_id, response = await answer_on(reader)
            assert (stream_id, response.status.code) == (3, 0)
            writer.close()

    run(scenario())


def test_frames_that_break_a_rule_leave_the_connection_as_it_was(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "s", State=STATE):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(struct.pack(">IIBB", (4 << 20) + 1, 1, 1, 0) + bytes((4 << 20) + 1))
            writer.write(frame(2, asked()) + frame(3, asked()))
            answers = [await answer_on(reader) for _ in range(3)]
            assert [(stream_id, one.status.code) for stream_id, one in answers] == [
                (1, 8),
                (2, 3),
                (3, 0),
            ]
            writer.close()

    run(scenario())


def test_a_client_that_ends_inside_a_frame_is_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "s", State=STATE):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(frame(1, asked())[:-1])
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()

    run(scenario())
    assert 'msg="client lost"' in capfd.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to connect as somebody else")
@pytest.mark.parametrize(("uid", "gid"), [(65534, 65534), (65534, 0), (0, 65534)])
def test_who_runs_as_another_user_or_group_is_not_heard(
    uid: int, gid: int, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scenario() -> None:
        address = Path(f"\0grit-test-{os.getpid()}")  # which anybody can reach
        async with served(address, State=STATE) as server:
            stranger = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", STRANGER.replace("sys.argv[1]", repr(str(address)))),
                stdout=subprocess.PIPE,
                user=uid,
                group=gid,
                extra_groups=[],
            )
            assert (await stranger.communicate())[0] == b"b''\n"
            assert server.connections == set()

    run(scenario())
    assert f"uid={uid} gid={gid}" in capfd.readouterr().err


def test_a_handler_goes_on_after_its_deadline_and_answers_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        created = asyncio.Event()

        async def create(_: task.CreateTaskRequest) -> task.CreateTaskResponse:
            await asyncio.sleep(0.03)
            created.set()
            return task.CreateTaskResponse(pid=1)

        methods = {"Create": Method(task.CreateTaskRequest, create), "State": STATE}
        async with served(tmp_path / "s", **methods):
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(frame(1, asked("Create", timeout_nano=20_000_000)))
            await created.wait()
            writer.write(frame(3, asked()))
            assert (await answer_on(reader))[0] == 3
            writer.close()

    run(scenario())


def test_a_client_waits_no_longer_than_it_said(tmp_path: Path) -> None:
    async def scenario() -> None:
        never = asyncio.Event()

        async def stuck(request: task.StateRequest) -> task.StateResponse:
            if request.id == "stuck":
                await never.wait()
            return await state(request)

        methods = {"State": Method(task.StateRequest, stuck, only_waits=True)}
        async with served(tmp_path / "s", **methods), client_of(tmp_path / "s") as client:
            with pytest.raises(errors.DeadlineExceededError, match=r"no answer within 0\.02 s"):
                await state_of(client, "stuck", timeout_s=0.02)
            assert await state_of(client, "other") == "/bundles/other"

    run(scenario())


def test_what_a_client_that_is_gone_has_begun_is_finished_but_not_waited_for(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        both = asyncio.Barrier(3)
        gone, created, forgotten = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def create(_: task.CreateTaskRequest) -> task.CreateTaskResponse:
            await both.wait()
            await gone.wait()
            created.set()
            return task.CreateTaskResponse(pid=1)

        async def wait(_: task.WaitRequest) -> task.WaitResponse:
            await both.wait()
            try:
                await asyncio.Event().wait()
            finally:
                forgotten.set()
            return task.WaitResponse()

        methods = {
            "Create": Method(task.CreateTaskRequest, create),
            "Wait": Method(task.WaitRequest, wait, only_waits=True),
        }
        async with served(tmp_path / "s", **methods):
            _, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(frame(1, asked("Create")) + frame(3, asked("Wait")))
            await both.wait()
            writer.close()
            await forgotten.wait()
            gone.set()
            await created.wait()

    run(scenario())


def test_a_server_that_closes_answers_what_runs_and_refuses_the_rest(tmp_path: Path) -> None:
    async def scenario() -> None:
        closing = asyncio.Event()

        async def shutdown(_: task.ShutdownRequest) -> Empty:
            closing.set()
            await ended.wait()
            return Empty()

        ended = asyncio.Event()
        methods = {"Shutdown": Method(task.ShutdownRequest, shutdown), "State": STATE}
        async with served(tmp_path / "s", **methods) as server:
            reader, writer = await asyncio.open_unix_connection(tmp_path / "s")
            writer.write(frame(1, asked("Shutdown")))
            await closing.wait()
            close = asyncio.create_task(server.close())
            await asyncio.sleep(0)
            writer.write(frame(3, asked()))
            stream_id, response = await answer_on(reader)
            assert (stream_id, response.status.code) == (3, 14)
            with pytest.raises(errors.UnavailableError, match="expected a ttrpc server"):
                await transport.connect(str(tmp_path / "s"))
            ended.set()
            stream_id, response = await answer_on(reader)
            assert (stream_id, response.status.code) == (1, 0)
            assert await reader.read() == b""
            await close
            writer.close()

    run(scenario())


def test_who_reads_no_answers_is_asked_for_no_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        async def large(_: task.StateRequest) -> task.StateResponse:
            return task.StateResponse(bundle="x" * (1 << 20))

        async with served(tmp_path / "s", State=Method(task.StateRequest, large)) as server:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(tmp_path / "s"))
                client.settimeout(0)
                sent = turns_blocked = 0
                while turns_blocked < 20:
                    try:
                        client.send(frame(2 * sent + 1, asked()))
                    except BlockingIOError:
                        turns_blocked += 1
                    else:
                        turns_blocked = 0
                        sent += 1
                    await asyncio.sleep(0)
                assert len(server.tasks) == 0
            assert sent < 100_000

    run(scenario())


def test_a_call_ends_with_its_connection(tmp_path: Path) -> None:
    async def scenario() -> None:
        begun = asyncio.Event()

        async def stuck(_: task.StateRequest) -> NoReturn:
            begun.set()
            await asyncio.Event().wait()
            raise AssertionError

        methods = {"State": Method(task.StateRequest, stuck, only_waits=True)}
        async with served(tmp_path / "s", **methods) as server:
            client = await transport.connect(str(tmp_path / "s"))
            call = asyncio.create_task(state_of(client, "x"))
            await begun.wait()
            await server.close()
            with pytest.raises(errors.UnavailableError, match="the server closed the connection"):
                await call
            with pytest.raises(errors.UnavailableError, match="the server closed the connection"):
                await state_of(client, "x")

    run(scenario())


def test_the_answer_to_a_call_that_was_given_up_is_dropped(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with served(tmp_path / "s", State=STATE), client_of(tmp_path / "s") as client:
            calls = [asyncio.create_task(state_of(client, "x")) for _ in range(2)]
            await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            client.data_received(struct.pack(">IIBB", 0, 1, RESPONSE, 0))
            for call in calls:
                with pytest.raises(asyncio.CancelledError):
                    await call
            client.data_received(struct.pack(">IIBB", 0, 3, RESPONSE, 0))
            assert await state_of(client, "y") == "/bundles/y"

    run(scenario())


def test_an_answer_of_another_kind_is_an_error(tmp_path: Path) -> None:
    async def scenario() -> None:
        async def other(_: task.StateRequest) -> ttrpc_pb2.Request:
            return ttrpc_pb2.Request(method="\x07")  # where a message should be

        methods = {"State": Method(task.StateRequest, other)}
        async with served(tmp_path / "s", **methods), client_of(tmp_path / "s") as client:
            with pytest.raises(errors.ProtocolError, match=r"not a containerd.*WaitResponse"):
                await client.call(
                    *(SERVICE, "State", task.StateRequest(), task.WaitResponse),
                    timeout_s=TIMEOUT_S,
                    metadata={},
                )

    run(scenario())


def test_a_socket_that_is_not_there_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(errors.UnavailableError, match=f"^{tmp_path}/s: No such file"):
            await transport.connect(str(tmp_path / "s"))

    run(scenario())
