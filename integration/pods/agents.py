"""Nodes' agents: a CA, a daemon on each node, and what they are asked on their sockets."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc

from grit_runtime.agent import client, service
from grit_runtime.proto import agent_pb2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from google.protobuf.message import Message

    from integration.node.node import Node

DIRECTORY = Path("/etc/grit/agent")
NOTIFY = Path("/run/agent-notify")
READY_TIMEOUT_S = 30


@contextmanager
def running(nodes: Sequence[Node]) -> Iterator[None]:
    """While the block runs, each node has an agent; they trust and find each other by name."""
    hosts = "".join(f"{node.connection.address} {node.name}\n" for node in nodes)
    with ExitStack() as stack:
        for node in nodes:
            with node.path(Path("/etc/hosts")).open("a") as file:
                file.write(hosts)
            directory = node.path(DIRECTORY)
            directory.mkdir(parents=True, exist_ok=True)
            if node is not nodes[0]:
                for name in ("ca.pem", "ca.key"):
                    content = (nodes[0].path(DIRECTORY) / name).read_bytes()
                    (directory / name).write_bytes(content)
            node.run(["grit", "agent", "init", "--node", node.name])
            _start(node, stack)
        yield


def begun(node: Node, method: str, request: Message) -> agent_pb2.Job:
    """A job that the node's agent has just begun, or joined."""
    with grpc.insecure_channel(f"unix:{socket_of(node)}") as channel:
        call = channel.unary_unary(
            f"/{service.SERVICE}/{method}",
            type(request).SerializeToString,
            agent_pb2.Job.FromString,
        )
        job: agent_pb2.Job = call(request, timeout=10)
    return job


def asked(node: Node, method: str, request: Message) -> agent_pb2.Job:
    """A job of the node's agent, once it has ended."""
    *_, last = client.followed(begun(node, method, request).id, socket_of(node))
    return last


def socket_of(node: Node) -> str:
    """Where this machine finds the agent's socket."""
    return str(node.path(Path(service.SOCKET)))


def _start(node: Node, stack: ExitStack) -> None:
    """Run the node's agent until the *stack* ends, and wait until it says that it is ready."""
    path = node.path(NOTIFY)
    path.unlink(missing_ok=True)
    told = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    told.bind(str(path))
    told.settimeout(READY_TIMEOUT_S)
    agent = node.popen(["env", f"NOTIFY_SOCKET={NOTIFY}", "grit", "agent", "run"])
    stack.callback(agent.wait)
    assert told.recv(100) == b"READY=1"
    stack.callback(os.kill, node.command_pid(agent), signal.SIGTERM)
