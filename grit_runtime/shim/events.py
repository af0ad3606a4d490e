"""Publishes containers' events, in order, to a containerd that may be down for a while.

Spec: containerd v2.1.9 pkg/shim/publisher.go, api/services/ttrpc/events/v1/events.proto.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from google.protobuf.empty_pb2 import Empty

from grit_runtime import log
from grit_runtime.errors import DeadlineExceededError, GritError, UnavailableError
from grit_runtime.proto import containerd_types_pb2 as types
from grit_runtime.proto import event_forwarding_pb2 as forwarding
from grit_runtime.proto import task_events_pb2 as events
from grit_runtime.shim.transport import Client, connect
from grit_runtime.wire.well_known import pack, timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from google.protobuf.message import Message

SERVICE = "containerd.services.events.ttrpc.v1.Events"
TIMEOUT_S = 5
RETRY_AFTER_S = 1
REFUSALS_MAX = 5
QUEUE_LIMIT = 2048

TOPICS: dict[type[Message], str] = {
    events.TaskCreate: "/tasks/create",
    events.TaskStart: "/tasks/start",
    events.TaskOOM: "/tasks/oom",
    events.TaskExit: "/tasks/exit",
    events.TaskDelete: "/tasks/delete",
    events.TaskExecAdded: "/tasks/exec-added",
    events.TaskExecStarted: "/tasks/exec-started",
    events.TaskPaused: "/tasks/paused",
    events.TaskResumed: "/tasks/resumed",
    events.TaskCheckpointed: "/tasks/checkpointed",
}


class Publisher:
    """Sends events one after the other; while containerd cannot be reached, they wait.

    The oldest are dropped once more than QUEUE_LIMIT wait, and an event that containerd refuses.
    """

    def __init__(self, address: str, namespace: str) -> None:
        self._namespace = namespace
        self._address = address
        self._client: Client | None = None
        self._queue: deque[types.Envelope] = deque(maxlen=QUEUE_LIMIT)
        self._added = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._sending = asyncio.create_task(self._send_all())

    def publish(self, event: Message) -> None:
        """Queue *event* with the present time."""
        envelope = types.Envelope(
            timestamp=timestamp(time.time_ns()),
            namespace=self._namespace,
            topic=TOPICS[type(event)],
            event=pack(event),
        )
        if len(self._queue) == QUEUE_LIMIT:
            log.warning("event lost: too many wait", topic=self._queue[0].topic)
        self._queue.append(envelope)
        self._added.set()
        self._empty.clear()

    async def flush(self, timeout_s: float) -> None:
        """Wait until all is sent, at most for *timeout_s*."""
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        except TimeoutError:
            log.warning("events lost", waiting=len(self._queue))

    async def _send_all(self) -> None:
        while True:
            await self._added.wait()
            while self._queue:
                envelope = self._queue[0]
                await self._deliver(envelope)
                if self._queue[0] is envelope:
                    self._queue.popleft()
            self._added.clear()
            self._empty.set()

    async def _deliver(self, envelope: types.Envelope) -> None:
        """Send until it has arrived, or has been refused too often."""
        refusals = 0
        while refusals < REFUSALS_MAX:
            try:
                await self._send(envelope)
            except GritError as error:
                log.warning("event not sent", topic=envelope.topic, reason=error)
                refusals += not isinstance(error, UnavailableError | DeadlineExceededError)
                await asyncio.sleep(RETRY_AFTER_S)
            else:
                return

    async def _send(self, envelope: types.Envelope) -> None:
        if self._client is None:
            self._client = await connect(self._address)
        try:
            await self._client.call(
                SERVICE,
                "Forward",
                forwarding.ForwardRequest(envelope=envelope),
                Empty,
                timeout_s=TIMEOUT_S,
                metadata={"containerd-namespace-ttrpc": self._namespace},
            )
        except (UnavailableError, DeadlineExceededError):
            self._client.close()
            self._client = None
            raise
