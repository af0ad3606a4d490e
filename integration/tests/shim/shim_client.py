"""A client of one shim's Task service, which says things that containerd would not."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from grit_runtime.proto import task_pb2
from grit_runtime.shim import transport

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from integration.pods.pod_host import Host

SERVICES = ("containerd.task.v2.Task", "containerd.task.v3.Task")
TASKS_DIR = Path("/run/containerd/io.containerd.runtime.v2.task/k8s.io")
TIMEOUT_S = 90

# Methods whose requests are called otherwise.
REQUESTS = {
    "Create": task_pb2.CreateTaskRequest,
    "Checkpoint": task_pb2.CheckpointTaskRequest,
    "Exec": task_pb2.ExecProcessRequest,
    "Update": task_pb2.UpdateTaskRequest,
}

M = TypeVar("M", bound=Message)
R = TypeVar("R")


class ShimClient:
    """Calls to the shim that serves a container, about it unless they say otherwise."""

    def __init__(self, client: transport.Client, container_id: str) -> None:
        self._client = client
        self._container_id = container_id

    async def ask(
        self, method: str, reply: type[M], *, service: str = SERVICES[0], **fields: object
    ) -> M:
        """The answer of *method* to a request of these fields."""
        kind = REQUESTS.get(method) or getattr(task_pb2, f"{method}Request")
        request = kind(**{"id": self._container_id, **fields})
        return await self._client.call(
            service, method, request, reply, timeout_s=TIMEOUT_S, metadata={}
        )

    async def tell(self, method: str, **fields: object) -> None:
        """Call *method*, whatever it answers."""
        await self.ask(method, Empty, service=SERVICES[0], **fields)

    async def run_exec(self, exec_id: str, *argv: str, **fields: object) -> int:
        """Have a process added, started, waited for and deleted; its exit status."""
        await self.tell("Exec", exec_id=exec_id, spec=process_spec(*argv), **fields)
        await self.tell("Start", exec_id=exec_id)
        ended = await self.ask("Wait", task_pb2.WaitResponse, exec_id=exec_id)
        await self.tell("Delete", exec_id=exec_id)
        return ended.exit_status


def process_spec(*argv: str) -> Any:
    """What containerd says of a process that is to be added to a container."""
    spec = {"args": argv, "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
    return Any(value=json.dumps(spec).encode())


def socket_of(node: Host, container_id: str) -> Path:
    """The socket of a container's shim, as this machine finds it."""
    address = (node.path(TASKS_DIR) / container_id / "address").read_text()
    return node.path(Path(address.removeprefix("unix://")))


def talk(
    node: Host, container_id: str, work: Callable[[ShimClient], Coroutine[object, object, R]]
) -> R:
    """What *work* makes of the shim of a container."""
    path = str(socket_of(node, container_id))

    async def connected() -> R:
        with closing(await transport.connect(path)) as client:
            return await work(ShimClient(client, container_id))

    return asyncio.run(asyncio.wait_for(connected(), TIMEOUT_S))


def shim_pid(node: Host, container_id: str) -> int:
    """The shim of a container, as the node numbers it."""

    async def connect(client: ShimClient) -> task_pb2.ConnectResponse:
        return await client.ask("Connect", task_pb2.ConnectResponse)

    return talk(node, container_id, connect).shim_pid


def left_by_shims(node: Host) -> list[str]:
    """Sockets, processes, bundles and mounts of shims."""
    script = f"ls /run/containerd/s {TASKS_DIR}; pgrep -x grit-shim; grep {TASKS_DIR} /proc/mounts"
    lines = node.run(["sh", "-c", script], check=False).stdout.splitlines()
    return [line for line in lines if line and not line.endswith(":")]
