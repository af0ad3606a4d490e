"""TCP connections as /proc shows them, on real sockets of this process and of a child."""

from __future__ import annotations

import os
import socket

import pytest

from grit_runtime.host import procfs
from grit_runtime.model import connections
from grit_runtime.model.connections import Endpoint
from grit_runtime.tasks import sockets
from grit_runtime.wire import unix_diag
from tests import forked

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


def test_what_the_other_end_has_closed_is_not_outside() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        here = Endpoint(*client.getsockname())
        with server.accept()[0] as accepted:
            client.close()
            assert accepted.recv(1) == b""
            found = [end for end in sockets.connections([os.getpid()]) if end.remote == here]
            assert [end.is_left for end in found] == [True]
            assert connections.outside(found) == []


def test_what_nobody_has_accepted_is_outside() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        here = Endpoint(*client.getsockname())
        found = [end for end in sockets.connections([os.getpid()]) if end.local == here]
        assert connections.outside(found) == found != []
        address = Endpoint(*server.getsockname())
        assert (os.getpid(), address) in sockets.backlogs([os.getpid()])
        with server.accept()[0]:
            assert (os.getpid(), address) not in sockets.backlogs([os.getpid()])


def test_the_peer_of_another_process_is_outside() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def connect() -> socket.socket:
            address = server.getsockname()
            server.close()
            return socket.create_connection(address)

        with forked.child(connect) as child, server.accept()[0] as accepted:
            [end] = sockets.connections([child])
            assert end.pid == child
            assert end.remote == Endpoint("127.0.0.1", server.getsockname()[1])
            assert connections.outside([end]) == [end]
            assert accepted.getpeername()[1] == end.local.port


def test_a_process_without_connections_has_none() -> None:
    with socket.create_server(("127.0.0.1", 0)):
        assert sockets.connections([os.getpid()]) == []


def held(*pids: int) -> dict[int, int]:
    return sockets.owners({pid: procfs.open_links(pid) for pid in pids})


def peers(*pids: int) -> list[tuple[int, str]]:
    return sockets.unix_peers({pid: procfs.open_links(pid) for pid in pids})


def test_a_unix_socket_whose_other_end_is_elsewhere_is_found(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def connect() -> tuple[object, ...]:
            listener.close()
            connected = socket.socket(socket.AF_UNIX)
            connected.connect(path)
            return connected, socket.socketpair()

        with forked.child(connect) as child, listener.accept()[0]:
            # The child has what this process has open, too.
            assert (child, path) in peers(child)
            assert (child, path) not in peers(child, os.getpid())


def unaccepted() -> list[tuple[int, str]]:
    own = held(os.getpid())
    return sockets.unaccepted(own, sockets.unix_sockets(own))


def test_what_came_over_a_connection_that_nobody_has_accepted_is_found(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(path)
        listener.listen()
        client.connect(path)
        assert unaccepted() == []
        client.send(b"x")
        assert unaccepted() == [(os.getpid(), path)]
        listener.accept()[0].close()
        assert unaccepted() == []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{path}-2")
        listener.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{path}-2")
        assert unaccepted() == [(os.getpid(), f"{path}-2")]


def test_a_socket_that_holds_datagrams_back_is_found() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as held_back:
        links = procfs.open_links(os.getpid())
        assert not sockets.corked(os.getpid(), links)
        held_back.setsockopt(socket.IPPROTO_UDP, 1, 1)  # UDP_CORK
        assert sockets.corked(os.getpid(), links)


def test_an_answer_of_the_kernel_that_nobody_has_read_is_found() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4) as diag:
        assert sockets.unread_netlink(held(os.getpid())) == set()
        diag.send(unix_diag.request())
        assert sockets.unread_netlink(held(os.getpid())) == {os.getpid()}
