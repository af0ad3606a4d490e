"""Messages between the agents of two nodes: a size (u32le), a message, then a body of raw bytes."""

from __future__ import annotations

import struct
from typing import TypeVar

from google.protobuf.message import DecodeError

from grit_runtime.errors import NewerFormatError, ProtocolError, printable
from grit_runtime.proto import peer_pb2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

Message = TypeVar("Message", peer_pb2.Request, peer_pb2.Reply)

VERSIONS = (1,)
HEAD_BYTES = 4
MAX_REQUEST_BYTES = 16 << 10
MAX_REPLY_BYTES = 8 << 20  # a listing has a few hundred bytes for each checkpoint
MAX_BODY_BYTES = 4 << 20
MAX_MANIFEST_BYTES = 64 << 20

_HEAD = struct.Struct("<I")
_TEXT_LIMIT = 2000


def framed(message: peer_pb2.Request | peer_pb2.Reply) -> bytes:
    """The message with its size before it; a body is sent after it."""
    data = message.SerializeToString()
    return _HEAD.pack(len(data)) + data


def message_bytes(head: bytes, limit_bytes: int) -> int:
    """The size of the message after these HEAD_BYTES; ProtocolError above the limit."""
    (size_bytes,) = _HEAD.unpack(head)
    if size_bytes > limit_bytes:
        raise ProtocolError(f"a message of {size_bytes} bytes, expected at most {limit_bytes}")
    return int(size_bytes)


def parse_request(data: bytes) -> peer_pb2.Request:
    """The request; ProtocolError if it is none of those that are known."""
    request = _parsed(peer_pb2.Request(), data)
    if request.WhichOneof("kind") is None:
        raise ProtocolError("a request of an unknown kind")
    return request


def parse_reply(data: bytes, max_body_bytes: int) -> peer_pb2.Reply:
    """The reply; ProtocolError if its body is larger, or it is none of those that are known."""
    reply = _parsed(peer_pb2.Reply(), data)
    if reply.WhichOneof("kind") is None:
        raise ProtocolError("a reply of an unknown kind")
    if reply.body_bytes > max_body_bytes:
        raise ProtocolError(
            f"a body of {reply.body_bytes} bytes, expected at most {max_body_bytes}"
        )
    if reply.HasField("failure"):
        failure = reply.failure
        failure.text = printable(failure.text[:_TEXT_LIMIT])
    return reply


def common_version(offered: Iterable[int]) -> int:
    """The newest version that both speak; NewerFormatError if there is none."""
    both = set(VERSIONS) & set(offered)
    if not both:
        raise NewerFormatError(
            f"it speaks versions {_listed(offered)} of the peers' protocol, this grit "
            f"{_listed(VERSIONS)}; upgrade the older one"
        )
    return max(both)


def _listed(versions: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(set(versions))[:8])) or "none"


def _parsed(message: Message, data: bytes) -> Message:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise ProtocolError(f"a message cannot be read: {error}") from None
    return message
