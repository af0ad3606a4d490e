"""Deciding what becomes of TCP connections and of addresses that sockets are bound to. Pure.

A connection with both ends in the pod is kept, because both ends are frozen and come back. For any
other connection, only the pod's owner can decide.
"""

from __future__ import annotations

import struct

from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from ipaddress import IPv4Address, IPv6Address

    from grit_runtime.proto import criu_pb2 as criu

# include/net/tcp_states.h, and IPPROTO_TCP.
_CLOSE, _LISTEN = 7, 10
_TCP = 6

_SHOWN = 3

# criu/include/cr_options.h
LOCK_SKIPPED = 2

# Like --link-remap, a flag that not every runc has.
SKIP_IN_FLIGHT = "--tcp-skip-in-flight"


class Endpoint(NamedTuple):
    """An address, IPv4 also where a socket of IPv6 has it mapped, and a port."""

    address: str
    port: int

    @classmethod
    def of(cls, address: IPv4Address | IPv6Address, port: int) -> Endpoint:
        mapped = getattr(address, "ipv4_mapped", None)
        return cls(str(mapped or address), port)

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}"


class Connection(NamedTuple):
    """One end of a TCP connection; *pid* is a process that has it open.

    *is_left* if the other end was here too, and no process has it open any more.
    """

    pid: int
    local: Endpoint
    remote: Endpoint
    is_left: bool = False

    @property
    def is_local(self) -> bool:
        """Whether its other end must be in the same network namespace."""
        return _is_local(self.local, self.remote)


class DumpOptions(NamedTuple):
    """Options for a dump with connections: flags of `runc checkpoint`, lines of CRIU's file.

    *has_peers* says that others than the pod itself will go on with its connections.
    """

    flags: tuple[str, ...]
    lines: tuple[str, ...]
    has_peers: bool = False


class Socket(NamedTuple):
    """An internet socket of a dump."""

    local: Endpoint
    remote: Endpoint
    is_connected: bool

    @property
    def is_bound_to_address(self) -> bool:
        """Whether it can exist only where its local address does."""
        address = _parsed(self.local.address)
        return not (address.is_unspecified or address.is_loopback)


def outside(connections: Sequence[Connection]) -> list[Connection]:
    """Those of a pod's connections whose other end is not in the pod."""
    ends = {(c.local, c.remote) for c in connections}
    return [c for c in connections if (c.remote, c.local) not in ends and not c.is_left]


def refusal(connections: Iterable[tuple[str, Connection]]) -> str | None:
    """Why a pod with these connections to the outside, by container, is not checkpointed."""
    named = [
        f"process {c.pid} in container {name}: {c.local} to {c.remote}" for name, c in connections
    ]
    if not named:
        return None
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    return (
        f"TCP connections would be cut off: {', '.join(named[:_SHOWN])}{more}; close them, or say "
        "grit.dev/tcp: close (the process sees a reset) or established (the new pod has the old "
        "address)"
    )


def refusal_of_backlogs(listeners: Sequence[tuple[str, int, Endpoint]]) -> str | None:
    """Why a pod with unaccepted connections is not checkpointed: CRIU cannot dump them.

    A listener is given as its container, its process and its address.
    """
    if not listeners:
        return None
    name, pid, address = listeners[0]
    return (
        f"process {pid} in container {name}: connections to {address} wait to be accepted, and "
        "cannot be kept; take the checkpoint when they are accepted, or say grit.dev/tcp: close"
    )


def dump_options(asked: str, connections: Sequence[Connection], *, inside: bool) -> DumpOptions:
    """How one container's *connections*, all *inside* its pod or not, are dumped as *asked*."""
    if asked == "close":
        # What waits in a listener's backlog is a connection too, of which nobody has an end yet.
        return DumpOptions((SKIP_IN_FLIGHT,), ("tcp-close", "skip-in-flight"))
    if not connections:
        return DumpOptions((), ())
    # If both ends are frozen, no packets arrive that a firewall would have to block.
    lines = ("network-lock skip",) if inside else ()
    return DumpOptions(("--tcp-established",), lines, has_peers=not inside)


def sockets(files: Iterable[criu.file_entry]) -> list[Socket]:
    """The internet sockets among the files of a dump."""
    return [_socket(file.isk) for file in files if file.HasField("isk")]


def unreachable(dumped: Sequence[Socket], missing: Iterable[str]) -> str | None:
    """Why the sockets cannot go on where the addresses *missing* are not."""
    gone = set(missing)
    ends = {(s.local, s.remote) for s in dumped if s.is_connected}
    for socket in dumped:
        inside = (socket.remote, socket.local) in ends
        if socket.is_connected and not inside and socket.local.address in gone:
            return (
                f"its TCP connection {socket.local} to {socket.remote} needs the address "
                f"{socket.local.address}, which the new pod has not; give the pod that address, or "
                "say grit.dev/tcp: close"
            )
    return None


def reaches_neighbour(dumped: Sequence[Socket]) -> bool:
    """Whether one container's sockets are connected to another's of its pod."""
    ends = {(s.local, s.remote) for s in dumped if s.is_connected}
    return any(
        socket.is_connected
        and (socket.remote, socket.local) not in ends
        and _is_local(socket.local, socket.remote)
        for socket in dumped
    )


def needs_lock(dumped: Iterable[Socket], tcp: str) -> bool:
    """Whether packets could harm the sockets before the restore is complete.

    An incomplete end of a connection would answer with a reset.
    """
    return tcp != "close" and any(socket.is_connected for socket in dumped)


def _is_local(one: Endpoint, other: Endpoint) -> bool:
    return one.address == other.address or _parsed(other.address).is_loopback


def _socket(entry: criu.inet_sk_entry) -> Socket:
    connected = entry.proto == _TCP and entry.state not in (_CLOSE, _LISTEN)
    local = Endpoint.of(_address(entry.src_addr), entry.src_port)
    return Socket(local, Endpoint.of(_address(entry.dst_addr), entry.dst_port), connected)


def _address(words: Sequence[int]) -> IPv4Address | IPv6Address:
    """An address from the kernel's words, which CRIU keeps in memory order."""
    return _parsed(struct.pack(f"={len(words)}I", *words))


def _parsed(address: str | bytes) -> IPv4Address | IPv6Address:
    from ipaddress import ip_address  # many dumps have no such socket

    return ip_address(address)
