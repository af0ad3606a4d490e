"""The connections of processes: TCP as /proc shows it, unix sockets as sock_diag(7) does.

Source: linux Documentation/networking/proc_net_tcp.rst, net/ipv4/tcp_ipv4.c get_tcp4_sock,
net/unix/af_unix.c unix_seq_show.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from contextlib import suppress
from typing import Any

from grit_runtime.host import linux, namespaces, procfs
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.host.procfs import open_links
from grit_runtime.model.connections import Connection, Endpoint
from grit_runtime.wire import unix_diag
from grit_runtime.wire.unix_diag import UnixSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_LISTEN, _CLOSE, _TIME_WAIT = "0A", "07", "06"
_ENDING = frozenset({"04", "05", _TIME_WAIT, "09", "0B"})  # FIN_WAIT1, FIN_WAIT2, LAST_ACK, CLOSING
_UDP_CORK = 1  # include/uapi/linux/udp.h

_TCP = ("net/tcp", "net/tcp6")
# Tables of /proc for sockets whose received data is not dumped: the columns of the receive queue's
# length and of the inode.
_UNDUMPED_QUEUES = {
    "a UDP socket": (("net/udp", "net/udp6", "net/udplite", "net/udplite6"), 4, 9),
    "an ICMP or raw socket": (("net/icmp", "net/icmp6", "net/raw", "net/raw6"), 4, 9),
    "a packet socket": (("net/packet",), 6, 8),
}

_NETLINK_SOCK_DIAG = 4
_DATAGRAM_LIMIT_BYTES = 1 << 16


def connections(pids: Iterable[int]) -> list[Connection]:
    """The TCP connections of *pids*, which share a network namespace; each once."""
    held = owners({pid: open_links(pid) for pid in pids})
    open_connections = []
    alive = set()  # ends that a process has open or can still accept
    for table in _TCP:
        for words in _table(held.values(), table):
            inode, state = int(words[9]), words[3]
            ends = _endpoint(words[1]), _endpoint(words[2])
            if inode or state not in _ENDING:
                alive.add(ends)
            if inode in held and state not in (_LISTEN, _CLOSE, _TIME_WAIT):
                open_connections.append(Connection(held[inode], *ends))
    return [
        connection._replace(
            is_left=(connection.remote, connection.local) not in alive and connection.is_local
        )
        for connection in open_connections
    ]


def backlogs(pids: Iterable[int]) -> list[tuple[int, Endpoint]]:
    """Listeners of *pids*, by process and address, with connections that wait to be accepted."""
    held = owners({pid: open_links(pid) for pid in pids})
    return [
        (held[int(words[9])], _endpoint(words[1]))
        for table in _TCP
        for words in _table(held.values(), table)
        if words[3] == _LISTEN and int(words[9]) in held and int(words[4].split(":")[1], 16)
    ]


def owners(links: Mapping[int, Mapping[int, str]]) -> dict[int, int]:
    """The lowest pid that has a socket open, by the sockets' inodes; *links* are `open_links`."""
    return {
        int(link[len("socket:[") : -1]): pid
        for pid in sorted(links, reverse=True)
        for link in links[pid].values()
        if link.startswith("socket:[")
    }


def unix_sockets(held: Mapping[int, int]) -> list[UnixSocket]:
    """All unix sockets of the network namespace that the processes of *held*, `owners`, share."""
    if not any(int(words[6]) in held for words in _table(held.values(), "net/unix")):
        return []
    return [UnixSocket(*fields) for fields in _in_network_of(held.values(), _list_unix_sockets)]


def unix_peers(links: Mapping[int, Mapping[int, str]]) -> list[tuple[int, str]]:
    """Unix connections with only one end in a container, whose processes run: pid and name.

    *links* are those of all its descriptors, by process. They and the sockets are read one after
    the other, and between the two a connection may be accepted or closed. So what is found is
    looked for again.
    """
    found = _half_outside(links)
    if found:
        again = _half_outside({pid: procfs.open_links(pid) for pid in links})
        found = {inode: one for inode, one in again.items() if inode in found}
    return list(found.values())


def _half_outside(links: Mapping[int, Mapping[int, str]]) -> dict[int, tuple[int, str]]:
    held = owners(links)
    listed = unix_sockets(held)
    names = {unix.inode: unix.name for unix in listed}
    return {
        unix.inode: (held[unix.inode], unix.name or names.get(unix.peer) or "without a name")
        for unix in listed
        if unix.inode in held and unix.peer and unix.peer not in held
    }


def unaccepted(held: Mapping[int, int], listed: Sequence[UnixSocket]) -> list[tuple[int, str]]:
    """Unix sockets with a connection that was used before it was accepted: pid and name.

    The data of such a connection cannot be read. Source: checkpoint-restore/criu criu/sk-unix.c
    dump_one_unix_fd@2cf8f13.
    """
    used = {0} | {unix.inode for unix in listed if unix.unsent_bytes}
    return [
        (held[unix.inode], unix.name or "without a name")
        for unix in listed
        if unix.inode in held and used & set(unix.waiting)
    ]


def unread_netlink(held: Mapping[int, int]) -> set[int]:
    """The processes with a netlink socket that has unread messages of the kernel."""
    return {
        held[int(words[9])]
        for words in _table(held.values(), "net/netlink")
        if int(words[4]) and int(words[9]) in held
    }


def unread(pids: Iterable[int]) -> dict[int, str]:
    """The processes with received data that no dump has, and the kind of socket that has it.

    *pids* share a network namespace.
    Source: checkpoint-restore/criu criu/sk-inet.c can_dump_inet_sk, gen_uncon_sk@2cf8f13.
    """
    links = {pid: open_links(pid) for pid in pids}
    held = owners(links)
    found = {
        held[int(words[inode_at])]: kind
        for kind, (tables, queue_at, inode_at) in _UNDUMPED_QUEUES.items()
        for table in tables
        for words in _table(held.values(), table)
        if int(words[inode_at]) in held and int(words[queue_at].rpartition(":")[2], 16)
    }
    connected = {int(words[9]) for table in _TCP for words in _table(held.values(), table)}
    over = {f"socket:[{inode}]" for inode in held.keys() - connected}
    for pid, own in links.items():
        for fd in (fd for fd, link in own.items() if link in over):
            if protocol(pid, fd).startswith("TCP") and _unread_bytes(pid, fd):
                found[pid] = "a TCP socket whose connection is over"
    return found


def _unread_bytes(pid: int, fd: int) -> int:
    with suppress(OSError):  # the process has closed it, or ended
        return linux.unread_bytes(pid, fd)
    return 0


def corked(pid: int, links: Mapping[int, str]) -> bool:
    """Whether a process has a UDP socket with UDP_CORK, which holds datagrams back."""
    return any(
        protocol(pid, fd).startswith("UDP") and _is_corked(pid, fd)
        for fd, link in links.items()
        if link.startswith("socket:[")
    )


def protocol(pid: int, fd: int) -> str:
    """The kernel's name of a socket's protocol: ``TCP``, ``UDPv6``, ``UNIX``; "" if it is gone.

    Source: linux net/socket.c sockfs_xattr_get.
    """
    with suppress(OSError):
        return os.getxattr(f"/proc/{pid}/fd/{fd}", "system.sockprotoname").rstrip(b"\0").decode()
    return ""


def _is_corked(pid: int, fd: int) -> bool:
    with (
        suppress(ProcessLookupError, OSError),
        socket.socket(fileno=linux.copy_descriptor(pid, fd)) as copy,
    ):
        return bool(copy.getsockopt(socket.IPPROTO_UDP, _UDP_CORK))
    return False


def _table(pids: Iterable[int], name: str) -> list[list[str]]:
    """The words of a table of the network namespace of *pids*; any of them may end meanwhile."""
    for pid in sorted(set(pids)):
        lines = procfs.text(pid, name).splitlines()
        if lines:
            return [line.split() for line in lines[1:]]
    return []


def _in_network_of(pids: Iterable[int], look: Callable[[], list[Any]]) -> Any:
    """What *look* returns in the network namespace of *pids*; any of them may end meanwhile."""
    for pid in sorted(set(pids)):
        with (
            suppress(FileNotFoundError, ProcessLookupError),
            closing_fd(os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)) as fd,
        ):
            return namespaces.inside([f"/proc/self/fd/{fd}"], look)
    return []


def _list_unix_sockets() -> list[UnixSocket]:
    """The unix sockets of this process's network namespace."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as diag:
        diag.send(unix_diag.request())
        listed = []
        is_last = False
        while not is_last:
            some, is_last = unix_diag.parse(diag.recv(_DATAGRAM_LIMIT_BYTES))
            listed += some
    return listed


def _endpoint(text: str) -> Endpoint:
    """``0100007F:1F90``: the address in words of the machine's byte order, and the port."""
    address, port = text.split(":")
    words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    return Endpoint.of(ipaddress.ip_address(struct.pack(f"={len(words)}I", *words)), int(port, 16))
