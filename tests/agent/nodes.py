"""Nodes that trust each other, with real certificates, on this machine's loopback interface."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, NamedTuple, Self

from grit_runtime.agent import connection, identity, work
from grit_runtime.agent.identity import Identity
from grit_runtime.agent.peers import Address
from grit_runtime.agent.serving import Server, listening_at
from grit_runtime.errors import GritError, UnimplementedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from grit_runtime.agent.connection import Connection
    from grit_runtime.proto import peer_pb2

HOST = "127.0.0.1"


def certified(tmp_path: Path, node: str, ca: str = "ca") -> Identity:
    """The identity of *node*, of the CA of that name."""
    directory = tmp_path / f"{node}-{ca}"
    identity.make(str(directory), node, str(tmp_path / ca))
    return Identity(str(directory))


def no_fetch(fetch: peer_pb2.Fetch, _peer: str, _host: str) -> Iterable[peer_pb2.Progress]:
    raise UnimplementedError(f"no fetch of {fetch.checkpoint.name} here")


@contextmanager
def serving(root: Path, own: Identity, node: str) -> Iterator[Address]:
    """An agent's server of the checkpoints below *root*."""
    with Server(str(root), own, listening_at(0, HOST), fetch=no_fetch) as server:
        yield Address(node, HOST, server.port)


@contextmanager
def answering(own: Identity, node: str, answer: Callable[[Connection], None]) -> Iterator[Address]:
    """A peer of our own making, which gives each connection to *answer*."""
    listening = socket.create_server((HOST, 0))

    def serve(sock: socket.socket) -> None:
        with suppress(GritError, OSError), connection.taken(sock, own) as one:
            answer(one)

    def accept() -> None:
        with suppress(OSError):  # it is closed
            while True:
                Thread(target=serve, args=listening.accept()[:1], daemon=True).start()

    thread = Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield Address(node, HOST, listening.getsockname()[1])
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


class Node(NamedTuple):
    """A node's agent, which keeps everything below a directory of its own."""

    directory: Path
    port: int
    own: Identity

    @property
    def root(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def socket(self) -> str:
        return str(self.directory / "run/agent.sock")

    @property
    def jobs(self) -> Path:
        return self.directory / "state/agent/jobs"


def node(tmp_path: Path, name: str) -> Node:
    own = certified(tmp_path, name)
    with socket.create_server((HOST, 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / f"{name}-node/checkpoints").mkdir(parents=True)
    return Node(tmp_path / f"{name}-node", port, own)


AGENT = """
import sys
from grit_runtime import paths
directory = sys.argv[1]
paths.RUN_DIR, paths.STATE_DIR = f"{directory}/run", f"{directory}/state"
from grit_runtime.agent import daemon, work
work.LOST_S = float(sys.argv[5])
from grit_runtime.config import Config
daemon.run(Config(checkpoint_root=f"{directory}/checkpoints", agent_dir=sys.argv[2],
    containerd_address=f"{directory}/none.sock",
    agent_port=int(sys.argv[3]), agent_jobs=1, agent_metrics=int(sys.argv[4])))
"""


@contextmanager
def agent(
    node: Node,
    metrics: int = 0,
    lost_s: float = work.LOST_S,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """The node's agent, a process of its own, once it has said that it is ready."""
    path = node.directory / "notify"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(path))
        told.settimeout(30)
        argv = [sys.executable, "-c", AGENT, str(node.directory), node.own.directory]
        argv += [str(node.port), str(metrics), str(lost_s)]
        environment = {**os.environ, **(environment or {}), "NOTIFY_SOCKET": str(path)}
        with (node.directory / "log").open("ab") as log:
            child = subprocess.Popen(argv, env=environment, stderr=log)
        try:
            assert told.recv(100) == b"READY=1"
            yield child
        finally:
            child.kill()
            child.wait()


class Gate:
    """A way to a port that lets so many bytes of the answers through, and more once it is open."""

    def __init__(self, port: int, size_bytes: int) -> None:
        self._target = port
        self._left = size_bytes
        self._is_open = Event()
        self.is_full = Event()
        self._listening = socket.create_server((HOST, 0))
        self.port: int = self._listening.getsockname()[1]

    def __enter__(self) -> Self:
        Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def open(self) -> None:
        self._is_open.set()

    def _accept(self) -> None:
        with suppress(OSError):  # it is closed
            while True:
                one, _ = self._listening.accept()
                try:
                    other = socket.create_connection((HOST, self._target))
                except ConnectionRefusedError:
                    one.close()
                    continue
                Thread(target=self._carry, args=(one, other), daemon=True).start()
                Thread(target=self._carry, args=(other, one, True), daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket, *is_counted: bool) -> None:
        with suppress(OSError), source:  # the other end has gone
            try:
                while data := source.recv(1 << 16):
                    if any(is_counted):
                        self._left -= len(data)
                        if self._left < 0:
                            self.is_full.set()
                            self._is_open.wait()
                    target.sendall(data)
            finally:
                target.shutdown(socket.SHUT_RDWR)
