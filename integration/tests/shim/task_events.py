"""containerd's own stream of events, as far as tasks are concerned."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import contextmanager
from typing import NamedTuple

import grpc

from grit_runtime.proto import containerd_types_pb2 as types
from grit_runtime.shim.events import TOPICS
from grit_runtime.wire.well_known import type_name, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from integration.node.node import Node

TIMEOUT_S = 30
SUBSCRIBE = "/containerd.services.events.v1.Events/Subscribe"
KINDS = {kind.DESCRIPTOR.full_name: kind for kind in TOPICS}


class Event(NamedTuple):
    """What has happened, by the last part of its topic, to which process, and all that is said."""

    what: str
    exec_id: str  # "" is the container's first process
    message: Any

    def __str__(self) -> str:
        return f"{self.what} {self.exec_id}".strip()


class Events:
    """All events of tasks from now on."""

    def __init__(self) -> None:
        self._heard: queue.Queue[types.Envelope] = queue.Queue()
        self._seen: list[Event] = []

    def of(self, container_id: str, until: str, *, times: int = 1) -> list[Event]:
        """The events of a container, once *until* has been told so many times."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            found = [event for event in self._seen if event.message.container_id == container_id]
            if [event.what for event in found].count(until) >= times:
                return found
            try:
                envelope = self._heard.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"not told {until} of {container_id}: {found}") from None
            if type_name(envelope.event) in KINDS:
                self._seen.append(_event(envelope))

    def listen(self, stream: Iterator[types.Envelope]) -> None:
        """Take in all of *stream*, until its channel is closed."""
        try:
            for envelope in stream:
                self._heard.put(envelope)
        except grpc.RpcError:
            return

    def wait_until_heard(self, node: Node) -> None:
        """Make events that have nothing to do with tasks until one of them is in the stream."""
        deadline = time.monotonic() + TIMEOUT_S
        while self._heard.empty():
            assert time.monotonic() < deadline, "containerd's events are not heard"
            node.run(["ctr", "namespaces", "label", "k8s.io", f"heard={time.monotonic_ns()}"])


@contextmanager
def watching(node: Node) -> Iterator[Events]:
    """The events of the node's containerd while the block runs."""
    events = Events()
    with grpc.insecure_channel(f"unix://{node.root}/run/containerd/containerd.sock") as channel:
        subscribe = channel.unary_stream(
            SUBSCRIBE,
            request_serializer=bytes,
            response_deserializer=types.Envelope.FromString,
        )
        stream = subscribe(b"", wait_for_ready=True)
        threading.Thread(target=events.listen, args=(stream,), daemon=True).start()
        events.wait_until_heard(node)
        yield events


def _event(envelope: types.Envelope) -> Event:
    message: Any = unpack(envelope.event, KINDS[type_name(envelope.event)])
    process_id = getattr(message, "exec_id", "") or getattr(message, "id", "")
    exec_id = "" if process_id == message.container_id else process_id
    return Event(envelope.topic.rpartition("/")[2], exec_id, message)
