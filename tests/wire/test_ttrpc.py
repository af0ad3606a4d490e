"""ttrpc: two ends wired back to back, and one end that is sent whatever may come."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime import errors
from grit_runtime.proto import ttrpc_pb2 as messages
from grit_runtime.wire import ttrpc
from grit_runtime.wire.ttrpc import Answer, Call, Code, Data, Refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

REQUEST, RESPONSE, DATA = 1, 2, 3
TOO_MANY_BYTES = (4 << 20) + 1

REQUESTS = st.builds(
    messages.Request,
    service=st.text(),
    method=st.text(),
    payload=st.binary(),
    timeout_nano=st.integers(-(1 << 63), (1 << 63) - 1),
    metadata=st.lists(st.builds(messages.KeyValue, key=st.text(), value=st.text())),
)


def request(method: str = "State", **fields: object) -> messages.Request:
    return messages.Request(service="containerd.task.v2.Task", method=method, **fields)  # type: ignore[arg-type]


def frame(kind: int, stream_id: int, data: bytes = b"", *, flags: int = 0) -> bytes:
    return struct.pack(">IIBB", len(data), stream_id, kind, flags) + data


def call(stream_id: int, method: str = "State") -> bytes:
    return frame(REQUEST, stream_id, request(method).SerializeToString())


def refusals(server: ttrpc.Server, data: bytes) -> list[tuple[int, int, str]]:
    """Stream, code and text of what a client is told to whom *server* answers *data*."""
    told = []
    for event in server.feed(data):
        assert isinstance(event, Refusal)
        size_bytes, stream_id, kind, flags = struct.unpack_from(">IIBB", event.reply)
        status = messages.Response.FromString(event.reply[10:]).status
        assert (size_bytes, stream_id) == (len(event.reply) - 10, event.stream_id)
        assert (kind, flags) == (RESPONSE, 0)
        told.append((stream_id, status.code, status.message))
    return told


def test_a_call_reaches_the_server_and_its_result_the_client() -> None:
    client, server = ttrpc.Client(), ttrpc.Server()
    asked = request(payload=b"\1\2", timeout_nano=7, metadata=[messages.KeyValue(key="k")])
    stream_id, sent = client.call(asked)
    assert server.feed(sent) == [Call(stream_id, asked, 0)]
    assert client.feed(server.respond(stream_id, b"result")) == [
        Answer(stream_id, Code.OK, "", b"result")
    ]


def test_a_frame_is_a_header_and_the_message() -> None:
    _, sent = ttrpc.Client().call(messages.Request(service="s", method="m", payload=b"p"))
    assert sent == bytes.fromhex("00000009 00000001 01 00") + b"\x0a\1s\x12\1m\x1a\1p"


def test_a_call_of_the_go_client_is_read() -> None:
    """As ttrpc 1.1.1 sends it, for State of a task "a" with a deadline and a namespace."""
    sent = bytes.fromhex("0000004c 00000001 01 00")
    sent += b"\x0a\x17containerd.task.v2.Task\x12\x05State\x1a\x03\x0a\x01a"
    sent += b"\x20\xc8\xb5\xe9\xdc\x03\x2a\x1f\x0a\x1acontainerd-namespace-ttrpc\x12\x01x"
    namespace = messages.KeyValue(key="containerd-namespace-ttrpc", value="x")
    asked = request(payload=b"\x0a\x01a", timeout_nano=999971528, metadata=[namespace])
    assert ttrpc.Server().feed(sent) == [Call(1, asked, 0)]


def test_an_empty_result_is_an_empty_frame() -> None:
    server = ttrpc.Server()
    server.feed(call(1))
    assert server.respond(1, b"") == bytes.fromhex("00000000 00000001 02 00")


def test_answers_come_in_any_order() -> None:
    client, server = ttrpc.Client(), ttrpc.Server()
    streams = [client.call(request(method)) for method in ("Wait", "Kill", "State")]
    calls = server.feed(b"".join(sent for _, sent in streams))
    assert [event.request.method for event in calls if isinstance(event, Call)] == [
        "Wait",
        "Kill",
        "State",
    ]
    for stream_id, _ in reversed(streams):
        assert client.feed(server.respond(stream_id, b"%d" % stream_id)) == [
            Answer(stream_id, Code.OK, "", b"%d" % stream_id)
        ]


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidArgumentError,
        errors.DeadlineExceededError,
        errors.NotFoundError,
        errors.AlreadyExistsError,
        errors.ResourceExhaustedError,
        errors.FailedPreconditionError,
        errors.UnimplementedError,
        errors.ProtocolError,
        errors.UnavailableError,
        errors.GritError,
    ],
)
def test_an_error_is_the_same_error_at_the_other_end(error: type[errors.GritError]) -> None:
    client, server = ttrpc.Client(), ttrpc.Server()
    stream_id, sent = client.call(request())
    server.feed(sent)
    (answer,) = client.feed(server.fail(stream_id, ttrpc.code_of(error("no such task")), "no such"))
    assert isinstance(answer, Answer)
    told = ttrpc.error_of(answer.code, answer.message)
    assert (type(told), str(told)) == (error, "no such")


def test_codes_have_the_numbers_that_containerd_tells_errors_by() -> None:
    codes = {
        errors.NotFoundError: 5,
        errors.AlreadyExistsError: 6,
        errors.FailedPreconditionError: 9,
        errors.InvalidArgumentError: 3,
        errors.UnavailableError: 14,
        errors.UnimplementedError: 12,
        errors.DeadlineExceededError: 4,
        errors.CommandError: 2,
    }
    assert {error: ttrpc.code_of(error("")) for error in codes} == codes


def test_the_text_of_an_error_is_one_line_of_what_a_message_carries() -> None:
    client, server = ttrpc.Client(), ttrpc.Server()
    stream_id, sent = client.call(request())
    server.feed(sent)
    (answer,) = client.feed(server.fail(stream_id, Code.UNKNOWN, "a\nb\udcff" + "x" * (5 << 20)))
    assert isinstance(answer, Answer)
    assert answer.message.startswith("a?b?xxx")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (call(2), (2, 3, "stream 2: a client's streams have odd numbers")),
        (call(0), (0, 3, "stream 0: a client's streams have odd numbers")),
        (frame(DATA, 4), (4, 3, "stream 4: a client's streams have odd numbers")),
        (call(5), (5, 3, "stream 5: the last stream was 5; expected a later one")),
        (call(3), (3, 3, "stream 3: the last stream was 5; expected a later one")),
        (frame(REQUEST, 7, b"\xff"), (7, 3, "stream 7: the request is not a ttrpc.Request")),
        (frame(DATA, 7), (7, 3, "stream 7: the stream takes no data, or no more")),
        (frame(DATA, 5), (5, 3, "stream 5: the stream takes no data, or no more")),
        (
            frame(REQUEST, 7, bytes(TOO_MANY_BYTES)),
            (7, 8, "stream 7: a message of 4194305 bytes, expected at most 4194304"),
        ),
    ],
    ids=[
        "even",
        "zero",
        "even data",
        "reused",
        "lower",
        "not a request",
        "no stream",
        "unary",
        "long",
    ],
)
def test_a_frame_that_breaks_a_rule_costs_its_stream_and_no_other(
    data: bytes, told: tuple[int, int, str]
) -> None:
    server = ttrpc.Server()
    server.feed(call(5))
    assert refusals(server, data) == [told]
    (event,) = server.feed(call(9))
    assert isinstance(event, Call)
    server.end()


def test_of_what_is_too_long_nothing_is_kept() -> None:
    server = ttrpc.Server()
    server.feed(struct.pack(">IIBB", 0xFFFFFFFF, 1, REQUEST, 0))
    for _ in range(64):
        assert server.feed(bytes(1 << 20)) == []
    assert server._buffer == b""


def test_the_longest_message_is_taken() -> None:
    client, server = ttrpc.Client(), ttrpc.Server()
    asked = messages.Request(payload=bytes((4 << 20) - 5))
    assert asked.ByteSize() == 4 << 20
    _, sent = client.call(asked)
    assert server.feed(sent) == [Call(1, asked, 0)]


def test_frames_of_a_kind_that_is_not_known_are_ignored() -> None:
    client, server = ttrpc.Client(), ttrpc.Server()
    stream_id, sent = client.call(request())
    assert server.feed(frame(4, 1, b"new") + frame(0, 3) + frame(RESPONSE, 5)) == []
    assert len(server.feed(sent)) == 1
    assert client.feed(frame(9, stream_id)) == []
    assert len(client.feed(server.respond(stream_id, b""))) == 1


def test_a_stream_that_was_refused_is_not_answered_again() -> None:
    server = ttrpc.Server()
    server.feed(call(1))
    assert len(refusals(server, call(1))) == 1
    assert server.respond(1, b"late") == server.fail(1, Code.UNKNOWN, "late") == b""
    assert server.send(1, b"late") == b""


def test_a_result_too_long_to_send_is_an_error_of_that_call() -> None:
    client, server = ttrpc.Client(), ttrpc.Server()
    stream_id, sent = client.call(request())
    server.feed(sent)
    (answer,) = client.feed(server.respond(stream_id, bytes(TOO_MANY_BYTES)))
    assert isinstance(answer, Answer)
    assert answer.code == Code.RESOURCE_EXHAUSTED


def test_a_request_too_long_to_send_uses_no_stream() -> None:
    client, server = ttrpc.Client(), ttrpc.Server()
    with pytest.raises(errors.ResourceExhaustedError, match="expected at most 4194304"):
        client.call(request(payload=bytes(TOO_MANY_BYTES)))
    stream_id, sent = client.call(request())
    assert stream_id == 1
    assert len(server.feed(sent)) == 1


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(RESPONSE, 1, bytes(TOO_MANY_BYTES)), Code.RESOURCE_EXHAUSTED),
        (frame(RESPONSE, 1, b"\xff"), Code.INTERNAL),
        (frame(DATA, 1, b"more"), Code.INTERNAL),
    ],
    ids=["oversized", "not a response", "data for a unary call"],
)
def test_an_answer_that_breaks_a_rule_fails_its_call_and_no_other(data: bytes, code: Code) -> None:
    client = ttrpc.Client()
    client.call(request())
    client.call(request())
    (answer,) = client.feed(data)
    assert isinstance(answer, Answer)
    assert (answer.stream_id, answer.code) == (1, code)
    assert client.feed(frame(RESPONSE, 1)) == []
    assert client.feed(frame(RESPONSE, 3)) == [Answer(3, Code.OK, "", b"")]


def test_answers_nobody_waits_for_are_ignored() -> None:
    client = ttrpc.Client()
    client.call(request())
    client.give_up(1)
    assert client.feed(frame(RESPONSE, 1) + frame(RESPONSE, 3, bytes(TOO_MANY_BYTES))) == []
    client.end()


def test_both_sides_of_a_stream_send_until_the_server_ends_it() -> None:
    client, server = ttrpc.Client(), ttrpc.Server()
    stream_id, sent = client.call(request("Transfer"), flags=ttrpc.REMOTE_OPEN)
    (begun,) = server.feed(sent)
    assert isinstance(begun, Call)
    assert begun.flags == ttrpc.REMOTE_OPEN
    assert server.feed(client.send(stream_id, b"up")) == [Data(stream_id, b"up", is_last=False)]
    assert server.feed(client.send(stream_id, b"")) == [Data(stream_id, b"", is_last=False)]
    assert client.feed(server.send(stream_id, b"down")) == [Data(stream_id, b"down", is_last=False)]
    assert server.feed(client.send(stream_id, None, is_last=True)) == [
        Data(stream_id, None, is_last=True)
    ]
    assert refusals(server, client.send(stream_id, b"more")) == [
        (stream_id, 3, f"stream {stream_id}: the stream takes no data, or no more")
    ]


def test_a_server_streams_to_its_last_message() -> None:
    client, server = ttrpc.Client(), ttrpc.Server()
    stream_id, sent = client.call(request("Follow"), flags=ttrpc.REMOTE_CLOSED)
    server.feed(sent)
    sent = server.send(stream_id, b"one") + server.send(stream_id, None, is_last=True)
    assert client.feed(sent) == [
        Data(stream_id, b"one", is_last=False),
        Data(stream_id, None, is_last=True),
    ]
    assert server.respond(stream_id, b"late") == b""
    assert client.feed(frame(RESPONSE, stream_id)) == []


def test_a_stream_ends_with_a_response_too() -> None:
    client, server = ttrpc.Client(), ttrpc.Server()
    stream_id, sent = client.call(request("Upload"), flags=ttrpc.REMOTE_OPEN)
    server.feed(sent)
    assert client.feed(server.respond(stream_id, b"all")) == [
        Answer(stream_id, Code.OK, "", b"all")
    ]
    assert refusals(server, client.send(stream_id, b"more")) == [
        (stream_id, 3, f"stream {stream_id}: the stream takes no data, or no more")
    ]


CONVERSATION = (
    call(1, "Create"),
    frame(REQUEST, 3, request("Attach").SerializeToString(), flags=ttrpc.REMOTE_OPEN),
    frame(DATA, 3, b"typed"),
    call(2),
    frame(7, 9, b"new"),
    frame(DATA, 3, flags=ttrpc.REMOTE_CLOSED | ttrpc.NO_DATA),
    call(5, "Wait"),
)


def events_of(chunks: Sequence[bytes]) -> list[Call | Data | Refusal]:
    server = ttrpc.Server()
    return [event for chunk in chunks for event in server.feed(chunk)]


def test_a_conversation_may_be_split_anywhere() -> None:
    whole = b"".join(CONVERSATION)
    expected = events_of(CONVERSATION)
    assert len(expected) == 6
    assert events_of([whole]) == expected
    assert events_of([whole[i : i + 1] for i in range(len(whole))]) == expected
    for offset in range(len(whole)):
        assert events_of([whole[:offset], whole[offset:]]) == expected


def test_a_conversation_may_end_between_frames_only() -> None:
    whole = b"".join(CONVERSATION)
    ends = {len(b"".join(CONVERSATION[:count])) for count in range(len(CONVERSATION) + 1)}
    for offset in range(len(whole) + 1):
        server = ttrpc.Server()
        server.feed(whole[:offset])
        if offset in ends:
            server.end()
        else:
            with pytest.raises(errors.ProtocolError, match="inside a frame"):
                server.end()


def test_the_end_may_not_come_while_bytes_are_skipped() -> None:
    client = ttrpc.Client()
    client.feed(struct.pack(">IIBB", TOO_MANY_BYTES, 1, RESPONSE, 0) + b"some")
    with pytest.raises(errors.ProtocolError, match="inside a frame"):
        client.end()


@given(asked=st.lists(REQUESTS, max_size=5), size_bytes=st.integers(1, 64))
def test_whatever_is_asked_arrives(asked: list[messages.Request], size_bytes: int) -> None:
    client, server = ttrpc.Client(), ttrpc.Server()
    sent = b"".join(client.call(one)[1] for one in asked)
    chunks = [sent[i : i + size_bytes] for i in range(0, len(sent), size_bytes)]
    got = [event for chunk in chunks for event in server.feed(chunk)]
    assert got == [Call(2 * i + 1, one, 0) for i, one in enumerate(asked)]


@given(payload=st.binary(), message=st.text(), code=st.sampled_from(list(Code)[1:]))
def test_whatever_is_answered_arrives(payload: bytes, message: str, code: Code) -> None:
    client, server = ttrpc.Client(), ttrpc.Server()
    server.feed(client.call(request())[1] + client.call(request())[1])
    assert client.feed(server.respond(1, payload) + server.fail(3, code, message)) == [
        Answer(1, Code.OK, "", payload),
        Answer(3, code, errors.printable(message), b""),
    ]
