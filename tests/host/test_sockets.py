"""TCP connections as /proc shows them, on real sockets of this process and of a child."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from grit_runtime.host import sockets
from grit_runtime.model import connections
from grit_runtime.model.connections import Endpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("listening", "family", "address"),
    [
        ("127.0.0.1", socket.AF_INET, "127.0.0.1"),
        ("::1", socket.AF_INET6, "::1"),
        ("::", socket.AF_INET6, "127.0.0.1"),
    ],
)
def test_both_ends_of_a_connection_are_found(
    listening: str, family: socket.AddressFamily, address: str
) -> None:
    dual = listening == "::"
    with (
        socket.create_server((listening, 0), family=family, dualstack_ipv6=dual) as server,
        socket.create_connection((address, server.getsockname()[1])) as client,
        server.accept()[0],
    ):
        here = Endpoint(address, client.getsockname()[1])
        there = Endpoint(address, server.getsockname()[1])
        found = sockets.connections([os.getpid()])
    ends = {(end.local, end.remote) for end in found}
    assert {(here, there), (there, here)} <= ends
    assert all(end.pid == os.getpid() for end in found)
    assert not {(here, there), (there, here)} & {
        (end.local, end.remote) for end in connections.outside(found)
    }


def test_the_peer_of_another_process_is_outside() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        child = os.fork()
        if child == 0:
            held = socket.create_connection(server.getsockname())
            server.close()
            signal.pause()
            held.close()
        with server.accept()[0] as accepted:
            [end] = sockets.connections([child])
            assert end.pid == child
            assert end.remote == Endpoint("127.0.0.1", server.getsockname()[1])
            assert connections.outside([end]) == [end]
            assert accepted.getpeername()[1] == end.local.port
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_process_without_connections_has_none() -> None:
    with socket.create_server(("127.0.0.1", 0)):
        assert sockets.connections([os.getpid()]) == []


def test_a_unix_socket_whose_other_end_is_elsewhere_is_found(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        child = os.fork()
        if child == 0:
            listener.close()
            both = socket.socketpair()
            held = socket.socket(socket.AF_UNIX)
            held.connect(path)
            signal.pause()
            del both, held
        with listener.accept()[0]:
            assert sockets.unix_peers([child]) == [(child, path)]
            assert sockets.unix_peers([child, os.getpid()]) == []
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
