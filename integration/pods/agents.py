"""Nodes' agents: a CA, a daemon on each node, and what they are asked on their sockets."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

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
def running(nodes: Sequence[Node], **environment: str) -> Iterator[None]:
    """While the block runs, each node has an agent; they trust and find each other by name."""
    introduce(nodes)
    with ExitStack() as stack:
        for node in nodes:
            start(node, stack, **environment)
        yield


def introduce(nodes: Sequence[Node]) -> None:
    """Have agents of the *nodes*, whoever runs them, trust and find each other by name."""
    hosts = "".join(f"{node.connection.address} {node.name}\n" for node in nodes)
    for node in nodes:
        if not node.path(DIRECTORY).exists():
            _introduce(node, nodes[0], hosts)


def _introduce(node: Node, first: Node, hosts: str) -> None:
    """Give the node a certificate of the *first* one's CA, and the other nodes' addresses."""
    with node.path(Path("/etc/hosts")).open("a") as file:
        file.write(hosts)
    directory = node.path(DIRECTORY)
    directory.mkdir(parents=True)
    if node is not first:
        for name in ("ca.pem", "ca.key"):
            (directory / name).write_bytes((first.path(DIRECTORY) / name).read_bytes())
    node.run(["grit", "agent", "init", "--node", node.name])


def begun(node: Node, method: str, request: Message) -> agent_pb2.Job:
    """A job that the node's agent has just begun, or joined."""
    return client.asked(method, request, agent_pb2.Job, socket_of(node))


def asked(node: Node, method: str, request: Message) -> agent_pb2.Job:
    """A job of the node's agent, once it has ended."""
    *_, last = client.followed(begun(node, method, request).id, socket_of(node))
    return last


def socket_of(node: Node) -> str:
    """Where this machine finds the agent's socket."""
    return str(node.path(Path(service.SOCKET)))


def start(node: Node, stack: ExitStack, **environment: str) -> None:
    """Run the node's agent until the *stack* ends, and wait until it says that it is ready."""
    path = node.path(NOTIFY)
    path.unlink(missing_ok=True)
    told = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    told.bind(str(path))
    told.settimeout(READY_TIMEOUT_S)
    variables = {"NOTIFY_SOCKET": str(NOTIFY), **environment}
    words = [f"{name}={value}" for name, value in variables.items()]
    agent = node.popen(["env", *words, "grit", "agent", "run"])
    stack.callback(agent.wait)
    assert told.recv(100) == b"READY=1"
    stack.callback(_end, node.command_pid(agent))


def kill(node: Node) -> None:
    """Kill the node's agent, as the kernel does when memory is short."""
    node.run(["pkill", "-KILL", "-f", "grit agent run"])


def _end(pid: int) -> None:
    with suppress(ProcessLookupError):  # it was killed
        os.kill(pid, signal.SIGTERM)
