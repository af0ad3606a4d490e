"""ttrpc on unix sockets: a server of methods, and calls to one. Knows none of the methods.

Runs on asyncio. Each call is a task of its own, so that a long one does not delay others. As in
containerd's own shims, a handler that has begun outlives its deadline and its client.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import traceback
from typing import Any, TypeVar, cast

from google.protobuf.message import DecodeError, Message

from grit_runtime import log
from grit_runtime.errors import (
    DeadlineExceededError,
    GritError,
    ProtocolError,
    UnavailableError,
    UnimplementedError,
    one_line,
)
from grit_runtime.proto import ttrpc_pb2
from grit_runtime.startup.named import NamedTuple
from grit_runtime.wire import ttrpc
from grit_runtime.wire.ttrpc import Code

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

_UCRED = struct.Struct("iII")  # pid, uid, gid: struct ucred of unix(7)

M = TypeVar("M", bound=Message)


class Method(NamedTuple):
    """A method of a service: the type of its requests, and its handler."""

    request: type[Message]
    handler: Callable[[Any], Awaitable[Message]]
    only_waits: bool = False  # it has no effect, and is cancelled when its client has gone


class Server:
    """Methods, by the names of their service and their own, on a listening socket.

    A handler's GritError or OSError is sent to its client. Any other exception is a bug: it is sent
    too, and logged. Clients that run as another user or group are refused.
    """

    def __init__(self, methods: Mapping[tuple[str, str], Method]) -> None:
        self._methods = methods
        self._is_closing = False
        self.connections: set[_ServedConnection] = set()
        self.tasks: set[asyncio.Task[None]] = set()  # the loop alone may lose one while it runs

    async def listen(self, listener: socket.socket) -> None:
        """Serve all clients that connect to *listener*, until close()."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(lambda: _ServedConnection(self), sock=listener)

    async def close(self) -> None:
        """Take no more calls, wait for those that run, and send their answers.

        A handler must not wait for this, because it would wait for itself. The handlers and clients
        decide how long it takes; handlers that only wait are cancelled.
        """
        self._is_closing = True
        self._listening.close()
        if self.tasks:
            await asyncio.wait(self.tasks)
        await asyncio.gather(*(connection.close() for connection in self.connections))

    def look_up(self, request: ttrpc_pb2.Request) -> tuple[Method, Message]:
        """The method of *request*, and its decoded argument."""
        if self._is_closing:
            raise UnavailableError(f"{request.method}: this shim is ending")
        method = self._methods.get((request.service, request.method))
        if method is None:
            raise UnimplementedError(f"{request.service}/{request.method}: no such method")
        try:
            return method, method.request.FromString(request.payload)
        except DecodeError:
            kind = method.request.DESCRIPTOR.full_name
            raise ProtocolError(f"{request.method}: the request is not a {kind}") from None


class _ServedConnection(asyncio.Protocol):
    """One client of a server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._wire = ttrpc.Server()
        self._waiting: set[asyncio.Task[None]] = set()
        self._lost = asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """Close the connection after all queued data is sent."""
        self._transport.close()
        await self._lost

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # it is a stream socket's
        self._server.connections.add(self)
        pid, uid, gid = _peer(transport.get_extra_info("socket"))
        if (uid, gid) != (os.geteuid(), os.getegid()):
            log.warning("client refused", pid=pid, uid=uid, gid=gid)
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        for event in self._wire.feed(data):
            match event:
                case ttrpc.Call():
                    self._begin(event)
                case ttrpc.Refusal(reply=reply):
                    self._transport.write(reply)
                case ttrpc.Data():
                    pass  # of a call that was refused, as no method here streams

    def eof_received(self) -> None:
        try:
            self._wire.end()
        except ProtocolError as error:
            log.warning("client lost", reason=error)

    def pause_writing(self) -> None:
        self._transport.pause_reading()  # no more requests until the client reads its answers

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    def connection_lost(self, _: Exception | None) -> None:
        self._server.connections.discard(self)
        for task in self._waiting:
            task.cancel()
        self._lost.set_result(None)

    def _begin(self, call: ttrpc.Call) -> None:
        try:
            method, argument = self._server.look_up(call.request)
            if call.flags:
                raise UnimplementedError(f"{call.request.method}: does not stream")
        except GritError as error:
            self._transport.write(self._failed(call, error))
            return
        task = asyncio.create_task(self._serve(call, method, argument))
        tasks = self._waiting if method.only_waits else self._server.tasks
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _serve(self, call: ttrpc.Call, method: Method, argument: Message) -> None:
        """Handle the call, and answer it if its client still waits."""
        loop = asyncio.get_running_loop()
        timeout_s = call.request.timeout_nano / 1e9 or float("inf")
        deadline_s = loop.time() + timeout_s
        try:
            result = await method.handler(argument)
            reply = self._wire.respond(call.stream_id, result.SerializeToString())
        except Exception as error:  # noqa: BLE001 -- whatever it is, the client may not wait for ever
            reply = self._failed(call, error)
        if loop.time() < deadline_s and not self._transport.is_closing():
            self._transport.write(reply)

    def _failed(self, call: ttrpc.Call, error: Exception) -> bytes:
        code = Code.UNKNOWN
        match error:
            case GritError():
                code, text = ttrpc.code_of(error), one_line(error)
            case OSError(errno=int()):  # a TimeoutError of asyncio's has none, and is a bug
                text = one_line(error)
            case _:
                text = f"{type(error).__name__}: {error}"
                trace = "".join(traceback.format_exception(error))
                log.error("handler failed", method=call.request.method, trace=trace)
        return self._wire.fail(call.stream_id, code, text)


def _peer(connected: socket.socket) -> tuple[int, int, int]:
    """Pid, uid and gid of the process that connected."""
    found = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(found)
    return pid, uid, gid


async def connect(path: str) -> Client:
    """A connection to the server that listens at *path*."""
    loop = asyncio.get_running_loop()
    try:
        _, client = await loop.create_unix_connection(lambda: Client(path), path)
    except OSError as error:
        raise UnavailableError(f"{path}: {error.strerror}; expected a ttrpc server") from None
    return client


class Client(asyncio.Protocol):
    """Calls to one server, any number at a time. A connection that is lost stays so."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._wire = ttrpc.Client()
        self._answers: dict[int, asyncio.Future[ttrpc.Answer]] = {}

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        reply: type[M],
        *,
        timeout_s: float,
        metadata: Mapping[str, str],
    ) -> M:
        """The server's answer; an error that it answers is raised.

        DeadlineExceededError: no answer within *timeout_s*, which is also sent to the server.
        UnavailableError: the connection is lost; it is unknown whether the call had its effect.
        """
        if self._transport.is_closing():
            raise self._lost()
        asked = ttrpc_pb2.Request(
            service=service,
            method=method,
            payload=request.SerializeToString(),
            timeout_nano=int(timeout_s * 1e9),
            metadata=[ttrpc_pb2.KeyValue(key=key, value=value) for key, value in metadata.items()],
        )
        stream_id, frame = self._wire.call(asked)
        self._answers[stream_id] = asyncio.get_running_loop().create_future()
        self._transport.write(frame)
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._answers[stream_id]
        except TimeoutError:
            raise DeadlineExceededError(
                f"{self._path}: {method}: no answer within {timeout_s} s"
            ) from None
        finally:
            del self._answers[stream_id]
            self._wire.give_up(stream_id)
        if answer.code != Code.OK:
            raise ttrpc.error_of(answer.code, f"{self._path}: {method}: {answer.message}")
        try:
            return reply.FromString(answer.payload)
        except DecodeError:
            kind = reply.DESCRIPTOR.full_name
            raise ProtocolError(f"{self._path}: {method}: the answer is not a {kind}") from None

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # it is a stream socket's

    def data_received(self, data: bytes) -> None:
        for event in self._wire.feed(data):
            answer = self._answers[event.stream_id]
            if isinstance(event, ttrpc.Answer) and not answer.done():
                answer.set_result(event)

    def connection_lost(self, _: Exception | None) -> None:
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(self._lost())

    def _lost(self) -> UnavailableError:
        return UnavailableError(f"{self._path}: the server closed the connection")
