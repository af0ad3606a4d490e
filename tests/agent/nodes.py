"""Nodes that trust each other, with real certificates, on this machine's loopback interface."""

from __future__ import annotations

import socket
from contextlib import contextmanager, suppress
from threading import Thread
from typing import TYPE_CHECKING

from grit_runtime.agent import connection, identity
from grit_runtime.agent.identity import Identity
from grit_runtime.agent.peers import Address
from grit_runtime.agent.serving import Server
from grit_runtime.errors import GritError, UnimplementedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
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
    with Server(str(root), own, 0, host=HOST, fetch=no_fetch) as server:
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
