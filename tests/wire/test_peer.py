"""Messages between agents: what is written is what is read, and what is too large is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.errors import NewerFormatError, ProtocolError
from grit_runtime.proto import peer_pb2
from grit_runtime.wire import peer

WORDS = st.text(max_size=40)


@given(
    namespace=WORDS,
    name=WORDS,
    path=WORDS,
    number=st.integers(0, (1 << 64) - 1),
    may_compress=st.booleans(),
)
def test_a_request_is_read_as_it_was_written(
    namespace: str, name: str, path: str, number: int, *, may_compress: bool
) -> None:
    checkpoint = peer_pb2.Checkpoint(namespace=namespace, name=name)
    chunk = peer_pb2.Chunk(
        checkpoint=checkpoint, path=path, number=number, may_compress=may_compress
    )
    request = peer_pb2.Request(chunk=chunk)
    framed = peer.framed(request)
    size_bytes = peer.message_bytes(framed[: peer.HEAD_BYTES], peer.MAX_REQUEST_BYTES)
    assert size_bytes == len(framed) - peer.HEAD_BYTES
    assert peer.parse_request(framed[peer.HEAD_BYTES :]) == request


@given(st.integers(peer.MAX_REQUEST_BYTES + 1, (1 << 32) - 1))
def test_a_message_above_the_limit_is_not_read(size_bytes: int) -> None:
    with pytest.raises(ProtocolError, match=f"a message of {size_bytes} bytes, expected at most"):
        peer.message_bytes(size_bytes.to_bytes(4, "little"), peer.MAX_REQUEST_BYTES)


def test_a_message_of_no_known_kind_is_refused() -> None:
    for data in (b"", b"\xff"):
        with pytest.raises(ProtocolError):
            peer.parse_request(data)
        with pytest.raises(ProtocolError):
            peer.parse_reply(data, 0)


def test_a_body_above_the_limit_is_refused() -> None:
    reply = peer_pb2.Reply(piece=peer_pb2.Piece(), body_bytes=11).SerializeToString()
    assert peer.parse_reply(reply, 11).body_bytes == 11
    with pytest.raises(ProtocolError, match="a body of 11 bytes, expected at most 10"):
        peer.parse_reply(reply, 10)


@given(st.lists(st.integers(0, 5), max_size=6))
def test_the_newest_version_that_both_speak_is_chosen(offered: list[int]) -> None:
    both = set(offered) & set(peer.VERSIONS)
    if both:
        assert peer.common_version(offered) == max(both)
    else:
        with pytest.raises(NewerFormatError, match="upgrade the older one"):
            peer.common_version(offered)
