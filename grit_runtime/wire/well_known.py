"""protobuf's well-known types, as containerd's Go code writes them: an Any's type has no host."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from grit_runtime.errors import InvalidArgumentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from google.protobuf.message import Message

M = TypeVar("M", bound="Message")


def pack(message: Message) -> Any:
    return Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def type_name(packed: Any) -> str:
    """The full name of the message's type; "" if there is none."""
    return packed.type_url.rpartition("/")[2]


def unpack(packed: Any, kind: type[M]) -> M:
    """The message, which must be of type *kind*; an Any without a type is an empty message."""
    name = kind.DESCRIPTOR.full_name
    if type_name(packed) not in ("", name):
        raise InvalidArgumentError(f"message is of type {packed.type_url}, expected {name}")
    try:
        return kind.FromString(packed.value)
    except DecodeError as error:
        raise InvalidArgumentError(f"message of type {name}: {error}") from None


def timestamp(at_ns: int) -> Timestamp | None:
    """A time of the wall clock; none for what has not been, which is 0."""
    return Timestamp(seconds=at_ns // 10**9, nanos=at_ns % 10**9) if at_ns else None
