"""ttrpc, both ends of a connection: received bytes to events, calls to bytes. Knows no sockets.

A frame is a header (u32be size of the data, u32be stream, u8 kind, u8 flags) and its data. A stream
is one call: a request, data either way if the method streams, and a response. A frame that breaks
a rule ends its stream, never the connection. Spec: containerd/ttrpc PROTOCOL.md and, where that is
silent, server.go, channel.go and client.go@4b166fb.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError

from grit_runtime.errors import (
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    GritError,
    InvalidArgumentError,
    NotFoundError,
    ProtocolError,
    ResourceExhaustedError,
    UnavailableError,
    UnimplementedError,
    printable,
)
from grit_runtime.proto import ttrpc_pb2 as ttrpc
from grit_runtime.startup.named import NamedTuple

MAX_DATA_BYTES = 4 << 20
_MAX_MESSAGE_CHARS = 64 << 10  # of an error, which a person reads

REMOTE_CLOSED = 0x01  # of a request: it streams, but its sender sends no more; of data: the last
REMOTE_OPEN = 0x02  # of a request: data of its sender follow
NO_DATA = 0x04  # of data: the frame carries nothing, not even an empty message

_HEADER = struct.Struct(">IIBB")
_REQUEST, _RESPONSE, _DATA = 1, 2, 3


class Code(IntEnum):
    """What a status says, as in gRPC (google/rpc/code.proto)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


_ERRORS: dict[int, type[GritError]] = {
    Code.INVALID_ARGUMENT: InvalidArgumentError,
    Code.DEADLINE_EXCEEDED: DeadlineExceededError,
    Code.NOT_FOUND: NotFoundError,
    Code.ALREADY_EXISTS: AlreadyExistsError,
    Code.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    Code.FAILED_PRECONDITION: FailedPreconditionError,
    Code.UNIMPLEMENTED: UnimplementedError,
    Code.INTERNAL: ProtocolError,
    Code.UNAVAILABLE: UnavailableError,
}
_CODES = {error: Code(code) for code, error in _ERRORS.items()}


def code_of(error: GritError) -> Code:
    """The code that tells a client what sort of error this is."""
    return _CODES.get(type(error), Code.UNKNOWN)


def error_of(code: int, message: str) -> GritError:
    """The error for a status."""
    return _ERRORS.get(code, GritError)(message)


class Call(NamedTuple):
    """A client's call. *flags* is 0 if unary, REMOTE_CLOSED or REMOTE_OPEN if it streams."""

    stream_id: int
    request: ttrpc.Request
    flags: int


class Data(NamedTuple):
    """The peer sent one message of a stream; None if the frame only closes its side of it."""

    stream_id: int
    payload: bytes | None
    is_last: bool


class Refusal(NamedTuple):
    """A frame broke a rule, which ended its stream; *reply* is to be sent and tells the client."""

    stream_id: int
    reply: bytes


class Answer(NamedTuple):
    """A call of this client has ended: with *payload* if the code is OK."""

    stream_id: int
    code: int
    message: str
    payload: bytes


class _Header(NamedTuple):
    size_bytes: int
    stream_id: int
    kind: int
    flags: int


class _Frame(NamedTuple):
    header: _Header
    data: bytes | None  # None: there were too many, and they were skipped


Event = TypeVar("Event")


class _Connection(Generic[Event]):
    """What both ends share: receiving frames, of which at most one incomplete frame is kept."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._header: _Header | None = None  # of the frame that has begun
        self._skip_bytes = 0  # what is to come of its data, if they are too many

    def feed(self, data: bytes) -> list[Event]:
        """The events of the peer's next bytes, whatever they are."""
        self._buffer += data
        events = []
        while (frame := self._next_frame()) is not None:
            event = self._receive(frame)
            if event is not None:
                events.append(event)
        return events

    def end(self) -> None:
        """The peer has closed the connection; a ProtocolError if that was inside a frame."""
        if self._header is not None or self._buffer:
            raise ProtocolError("ttrpc: the peer closed the connection inside a frame")

    def _receive(self, frame: _Frame) -> Event | None:
        raise NotImplementedError

    def _next_frame(self) -> _Frame | None:
        header = self._header or self._next_header()
        if header is None:
            return None
        data = None
        if header.size_bytes > MAX_DATA_BYTES:
            skipped = min(self._skip_bytes, len(self._buffer))
            del self._buffer[:skipped]
            self._skip_bytes -= skipped
            if self._skip_bytes > 0:
                return None
        elif header.size_bytes > len(self._buffer):
            return None
        else:
            data = bytes(self._buffer[: header.size_bytes])
            del self._buffer[: header.size_bytes]
        self._header = None
        return _Frame(header, data)

    def _next_header(self) -> _Header | None:
        if len(self._buffer) < _HEADER.size:
            return None
        self._header = _Header(*_HEADER.unpack_from(self._buffer))
        del self._buffer[: _HEADER.size]
        self._skip_bytes = self._header.size_bytes
        return self._header


class Server(_Connection[Call | Data | Refusal]):
    """The end that accepted the connection.

    A refused frame ends its stream even if its call was well: what the handler of that call still
    sends is dropped.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last_id = 0
        self._streams: dict[int, bool] = {}  # not answered yet; whether their clients send data

    def respond(self, stream_id: int, payload: bytes) -> bytes:
        """End a call with its result."""
        response = ttrpc.Response(payload=payload)
        if response.ByteSize() > MAX_DATA_BYTES:
            return self.fail(stream_id, Code.RESOURCE_EXHAUSTED, _too_long(response.ByteSize()))
        return self._end(stream_id, response)

    def fail(self, stream_id: int, code: Code, message: str) -> bytes:
        """End a call with an error."""
        return self._end(stream_id, _failure(code, message))

    def send(self, stream_id: int, payload: bytes | None, *, is_last: bool = False) -> bytes:
        """One message of a stream, which ends with the last; None closes it without one."""
        if stream_id not in self._streams:
            return b""
        if is_last:
            del self._streams[stream_id]
        return _data_frame(stream_id, payload, is_last=is_last)

    def _end(self, stream_id: int, response: ttrpc.Response) -> bytes:
        if self._streams.pop(stream_id, None) is None:
            return b""
        return _frame(stream_id, _RESPONSE, 0, response.SerializeToString())

    def _receive(self, frame: _Frame) -> Call | Data | Refusal | None:
        size_bytes, stream_id, kind, flags = frame.header
        if frame.data is None:
            return self._refuse(stream_id, _too_long(size_bytes), Code.RESOURCE_EXHAUSTED)
        if stream_id % 2 == 0:
            return self._refuse(stream_id, "a client's streams have odd numbers")
        if kind == _REQUEST:
            return self._receive_request(stream_id, flags, frame.data)
        if kind == _DATA:
            return self._receive_data(stream_id, flags, frame.data)
        return None  # of a later version of the protocol, which sees to it that this does no harm

    def _receive_request(self, stream_id: int, flags: int, data: bytes) -> Call | Refusal:
        if stream_id <= self._last_id:
            return self._refuse(
                stream_id, f"the last stream was {self._last_id}; expected a later one"
            )
        self._last_id = stream_id
        try:
            request = ttrpc.Request.FromString(data)
        except DecodeError:
            return self._refuse(stream_id, "the request is not a ttrpc.Request")
        self._streams[stream_id] = flags & REMOTE_OPEN != 0
        return Call(stream_id, request, flags & (REMOTE_CLOSED | REMOTE_OPEN))

    def _receive_data(self, stream_id: int, flags: int, data: bytes) -> Data | Refusal:
        if not self._streams.get(stream_id):
            return self._refuse(stream_id, "the stream takes no data, or no more")
        is_last = flags & REMOTE_CLOSED != 0
        self._streams[stream_id] = not is_last
        return Data(stream_id, None if flags & NO_DATA else data, is_last)

    def _refuse(self, stream_id: int, message: str, code: Code = Code.INVALID_ARGUMENT) -> Refusal:
        self._streams.pop(stream_id, None)
        response = _failure(code, f"stream {stream_id}: {message}")
        return Refusal(stream_id, _frame(stream_id, _RESPONSE, 0, response.SerializeToString()))


class Client(_Connection[Answer | Data]):
    """The end that connected. What comes for a call that has ended or was given up is ignored."""

    def __init__(self) -> None:
        super().__init__()
        self._next_id = 1
        self._streams: dict[int, bool] = {}  # not answered yet; whether they may bring data

    def call(self, request: ttrpc.Request, *, flags: int = 0) -> tuple[int, bytes]:
        """Begin a call: its stream, and what to send. *flags* as in Call."""
        stream_id = self._next_id
        frame = _frame(stream_id, _REQUEST, flags, request.SerializeToString())
        self._next_id += 2
        self._streams[stream_id] = flags != 0
        return stream_id, frame

    def send(self, stream_id: int, payload: bytes | None, *, is_last: bool = False) -> bytes:
        """One message of a stream that was begun open; None closes our side without one."""
        return _data_frame(stream_id, payload, is_last=is_last)

    def give_up(self, stream_id: int) -> None:
        """Forget a call that nobody waits for any more."""
        self._streams.pop(stream_id, None)

    def _receive(self, frame: _Frame) -> Answer | Data | None:
        size_bytes, stream_id, kind, flags = frame.header
        streams = self._streams.get(stream_id)
        if streams is None:
            return None
        if frame.data is None:
            return self._fail(stream_id, Code.RESOURCE_EXHAUSTED, _too_long(size_bytes))
        if kind == _RESPONSE:
            return self._receive_response(stream_id, frame.data)
        if kind == _DATA and not streams:
            return self._fail(stream_id, Code.INTERNAL, "data came for a call that is unary")
        if kind == _DATA:
            is_last = flags & REMOTE_CLOSED != 0
            if is_last:
                del self._streams[stream_id]
            return Data(stream_id, None if flags & NO_DATA else frame.data, is_last)
        return None

    def _receive_response(self, stream_id: int, data: bytes) -> Answer:
        try:
            response = ttrpc.Response.FromString(data)
        except DecodeError:
            return self._fail(stream_id, Code.INTERNAL, "the response is not a ttrpc.Response")
        del self._streams[stream_id]
        return Answer(stream_id, response.status.code, response.status.message, response.payload)

    def _fail(self, stream_id: int, code: Code, message: str) -> Answer:
        del self._streams[stream_id]
        return Answer(stream_id, code, message, b"")


def _failure(code: Code, message: str) -> ttrpc.Response:
    text = printable(message[:_MAX_MESSAGE_CHARS])
    return ttrpc.Response(status=ttrpc.Status(code=code, message=text))


def _too_long(size_bytes: int) -> str:
    return f"a message of {size_bytes} bytes, expected at most {MAX_DATA_BYTES}"


def _data_frame(stream_id: int, payload: bytes | None, *, is_last: bool) -> bytes:
    flags = (REMOTE_CLOSED if is_last else 0) | (NO_DATA if payload is None else 0)
    return _frame(stream_id, _DATA, flags, payload or b"")


def _frame(stream_id: int, kind: int, flags: int, data: bytes) -> bytes:
    if len(data) > MAX_DATA_BYTES:
        raise ResourceExhaustedError(_too_long(len(data)))
    return _HEADER.pack(len(data), stream_id, kind, flags) + data
