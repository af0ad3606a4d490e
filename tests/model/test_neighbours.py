"""Which connections reach another container of the pod, and which need packets held back."""

from __future__ import annotations

from grit_runtime.model import connections
from grit_runtime.model.connections import Endpoint, Socket


def connected(local: tuple[str, int], remote: tuple[str, int]) -> Socket:
    return Socket(Endpoint(*local), Endpoint(*remote), is_connected=True)


def test_only_a_peer_in_another_container_of_the_pod_is_a_neighbour() -> None:
    here, there = ("127.0.0.1", 1), ("127.0.0.1", 2)
    assert connections.reaches_neighbour([connected(here, there)])
    assert connections.reaches_neighbour([connected(("10.0.0.1", 1), ("10.0.0.1", 2))])
    assert not connections.reaches_neighbour([connected(here, there), connected(there, here)])
    assert not connections.reaches_neighbour([connected(("10.0.0.1", 1), ("10.0.0.2", 2))])
    listening = connected(here, ("::", 0))._replace(is_connected=False)
    assert not connections.reaches_neighbour([listening])


def test_packets_are_held_back_only_for_a_connection_that_is_kept() -> None:
    kept = connected(("10.0.0.1", 1), ("10.0.0.2", 2))
    bound = kept._replace(is_connected=False)
    assert connections.needs_lock([bound, kept], "established")
    assert connections.needs_lock([kept], "")
    assert not connections.needs_lock([kept], "close")
    assert not connections.needs_lock([bound], "")
    assert not connections.needs_lock([], "established")
