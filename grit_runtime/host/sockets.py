"""The connections of processes: TCP as /proc shows it, unix sockets as sock_diag(7) does.

Source: linux Documentation/networking/proc_net_tcp.rst, net/ipv4/tcp_ipv4.c get_tcp4_sock,
net/unix/af_unix.c unix_seq_show.
"""

from __future__ import annotations

import ipaddress
import socket
import struct

from grit_runtime.host import namespaces
from grit_runtime.host.process import open_links, proc_text
from grit_runtime.model.connections import Connection, Endpoint
from grit_runtime.wire import unix_diag

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_LISTEN, _CLOSE, _TIME_WAIT = "0A", "07", "06"
_CONNECTED = "03"  # SS_CONNECTED of include/uapi/linux/net.h

_NETLINK_SOCK_DIAG = 4
_DATAGRAM_LIMIT_BYTES = 1 << 16


def connections(pids: Iterable[int]) -> list[Connection]:
    """Those of *pids*, which share a network namespace; one that several processes hold once."""
    owners = _owners(pids)
    found = []
    for pid in sorted(set(owners.values()))[:1]:
        for table in ("net/tcp", "net/tcp6"):
            for line in proc_text(pid, table).splitlines()[1:]:
                words = line.split()
                owner = owners.get(int(words[9]))
                if owner is not None and words[3] not in (_LISTEN, _CLOSE, _TIME_WAIT):
                    found.append(Connection(owner, _endpoint(words[1]), _endpoint(words[2])))
    return found


def unix_peers(pids: Iterable[int]) -> list[tuple[int, str]]:
    """Connections over unix sockets of which *pids*, a container's, have one end: pid and name."""
    owners = _owners(pids)
    connected = {
        int(words[6])
        for pid in sorted(set(owners.values()))[:1]
        for words in map(str.split, proc_text(pid, "net/unix").splitlines()[1:])
        if words[5] == _CONNECTED and int(words[6]) in owners
    }
    if not connected:
        return []
    pid = owners[min(connected)]
    listed = namespaces.inside([f"/proc/{pid}/ns/net"], _unix_sockets)
    names = {inode: name for inode, _, name in listed}
    return [
        (owners[inode], name or names.get(peer) or "without a name")
        for inode, peer, name in listed
        if inode in connected and peer and peer not in owners
    ]


def _owners(pids: Iterable[int]) -> dict[int, int]:
    """The lowest of *pids* that holds a socket, by the inodes of all their sockets."""
    return {
        int(link[len("socket:[") : -1]): pid
        for pid in sorted(pids, reverse=True)
        for link in open_links(pid).values()
        if link.startswith("socket:[")
    }


def _unix_sockets() -> list[unix_diag.UnixSocket]:
    """Those of our network namespace."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as diag:
        diag.send(unix_diag.request())
        found = []
        is_last = False
        while not is_last:
            some, is_last = unix_diag.parse(diag.recv(_DATAGRAM_LIMIT_BYTES))
            found += some
    return found


def _endpoint(text: str) -> Endpoint:
    """``0100007F:1F90``: the address in words of the machine's byte order, and the port."""
    address, port = text.split(":")
    words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    return Endpoint.of(ipaddress.ip_address(struct.pack(f"={len(words)}I", *words)), int(port, 16))
