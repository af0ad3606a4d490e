"""State of sockets that no image of CRIU holds: options, multicast groups, the listening process.

A socket of another process is read and changed through a copy of its descriptor.

Spec: socket(7), ip(7), ipv6(7), tcp(7), udp(7), unix(7), pidfd_getfd(2); struct group_req and
group_filter of include/uapi/linux/in.h; proc_pid_net(5).
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
from contextlib import ExitStack, contextmanager, suppress

from grit_runtime.host import linux, namespaces, procfs
from grit_runtime.host.procfs import open_links
from grit_runtime.model.socket_options import CONGESTION, MULTICAST, OPTIONS
from grit_runtime.model.task_facts import Membership, SocketFacts, SocketOption
from grit_runtime.startup.named import NamedTuple
from grit_runtime.tasks.ptrace import Syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from grit_runtime.tasks.ptrace_agent import Holder

    Kind = tuple[int, int, int]  # family, type and protocol
    Values = dict[tuple[int, int], bytes]

_SYS_LISTEN = 50  # on x86-64
_OPTION_BYTES = 16
_SO_PEERCRED = 17
_SO_ACCEPTCONN = 30
_MCAST_JOIN_GROUP, _MCAST_MSFILTER = 42, 48
_TCP_REPAIR, _TCP_REPAIR_WINDOW = 19, 29
_REPAIR_ON, _REPAIR_OFF_SILENTLY = 1, -1
_WINDOW = struct.Struct("5I")  # struct tcp_repair_window of include/uapi/linux/tcp.h
_GROUP_LEVELS = {socket.AF_INET: socket.IPPROTO_IP, socket.AF_INET6: socket.IPPROTO_IPV6}
_ADDRESS_BYTES = 128  # of struct sockaddr_storage
_SOURCES_LIMIT = 64


class Found(NamedTuple):
    """A socket of a process, by one of its descriptors; there may be several."""

    pid: int
    fd: int
    inode: int


def find(pids: Iterable[int]) -> list[Found]:
    """The sockets of the processes, each once."""
    by_inode: dict[int, Found] = {}
    for pid in pids:
        for fd, link in sorted(open_links(pid).items()):
            if link.startswith("socket:["):
                inode = int(link[len("socket:[") : -1])
                by_inode.setdefault(inode, Found(pid, fd, inode))
    return list(by_inode.values())


def connected_by_others(pids: Iterable[int]) -> dict[int, str]:
    """The processes with a unix connection whose SO_PEERCRED a restore cannot reproduce.

    Each with the peer that SO_PEERCRED names.
    """
    peers: dict[int, str] = {}
    with _copies(find(pids)) as copies:
        for found, copy in copies:
            if copy.family != socket.AF_UNIX or copy.type == socket.SOCK_DGRAM:
                continue
            with suppress(OSError):  # not connected
                is_named = bool(copy.getpeername() or copy.getsockname())
                data = copy.getsockopt(socket.SOL_SOCKET, _SO_PEERCRED, 12)
                _, uid, gid = struct.unpack("3i", data)
                if is_named or uid or gid:
                    peers[found.pid] = f"uid {uid}, gid {gid}"
    return peers


def read(pids: Mapping[int, int]) -> dict[int, tuple[SocketFacts, ...]]:
    """The sockets of processes that differ from new ones of their kind, by the container's pid.

    *pids* maps the container's pids to the node's. Nothing may change the sockets meanwhile.
    """
    inside = {pid: number for number, pid in pids.items()}
    facts: dict[int, tuple[SocketFacts, ...]] = {}
    with _copies(find(_in_order(pids))) as copies:
        usual = _usual(copies)
        groups = _groups(copies)
        for found, copy in copies:
            now, kind = _values(copy), _kind(copy)
            socket_facts = SocketFacts(
                found.fd,
                tuple(
                    SocketOption(*option, value.hex())
                    for option, value in sorted(now.items())
                    if usual[kind].get(option) != value
                ),
                tuple(_memberships(copy, groups)),
                _listener(copy, inside),
            )
            if any(socket_facts[1:]):
                number = inside[found.pid]
                facts[number] = (*facts.get(number, ()), socket_facts)
    return facts


def mend(
    facts_by_pid: Mapping[int, Sequence[SocketFacts]],
    pids: Mapping[int, int],
    backlogs: Mapping[tuple[int, int], int],
    holder: Holder,
) -> list[str]:
    """Restore the state of the processes' sockets; a line for each failure.

    *facts_by_pid* is by the container's pids; *backlogs* are those of unix listeners, by pid and
    descriptor.
    """
    inside = {pid: number for number, pid in pids.items()}
    by_place = {
        (number, facts.fd): facts for number, several in facts_by_pid.items() for facts in several
    }
    failures = []
    with _copies(find(_in_order(pids))) as copies:
        usual = _usual(copies)
        for found, copy in copies:
            place = (inside[found.pid], found.fd)
            facts = by_place.get(place, SocketFacts(found.fd, (), (), ()))
            where = f"process {place[0]}: socket {found.fd}"
            failures += [f"{where}: {line}" for line in _set(copy, facts, usual[_kind(copy)])]
            failures += [f"{where}: {line}" for line in _join(copy, facts.memberships, found.pid)]
            if facts.listener and _listener(copy, inside) != facts.listener:
                _listen_as(found, facts.listener, pids, backlogs.get(place, 0), holder)
                if _listener(copy, inside) != facts.listener:
                    failures.append(f"{where}: who connects is told of another listener")
    return failures


def open_window(pid: int, fd: int, window_bytes: int) -> None:
    """Set the peer's receive window in a connected TCP socket of a process.

    CRIU repeats the peer's FIN with the window cut to 16 bits, so that 64 KiB become 0, and sending
    waits some seconds for the timer that probes the window. Source: checkpoint-restore/criu
    soccr/soccr.c send_fin@2cf8f13, linux net/ipv4/tcp.c tcp_repair_set_window.
    """
    with socket.socket(fileno=linux.copy_descriptor(pid, fd)) as copy:
        may_reuse = copy.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        copy.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_ON)
        try:
            window = copy.getsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_WINDOW, _WINDOW.size)
            update, _, longest, *own = _WINDOW.unpack(window)
            changed = _WINDOW.pack(update, window_bytes, max(longest, window_bytes), *own)
            copy.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_WINDOW, changed)
        finally:
            copy.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_OFF_SILENTLY)
            copy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, may_reuse)


def _in_order(pids: Mapping[int, int]) -> list[int]:
    """The node's pids in the order of the container's.

    So a shared socket belongs to the same process at the checkpoint and at the restore.
    """
    return [pid for _, pid in sorted(pids.items())]


@contextmanager
def _copies(sockets: Iterable[Found]) -> Iterator[list[tuple[Found, socket.socket]]]:
    """Copies of *sockets*, except those that were closed meanwhile."""
    with ExitStack() as stack:
        copies = []
        for found in sockets:
            with suppress(FileNotFoundError, ProcessLookupError):
                copy = socket.socket(fileno=linux.copy_descriptor(found.pid, found.fd))
                copies.append((found, stack.enter_context(copy)))
        yield copies


def _kind(copy: socket.socket) -> Kind:
    return (copy.family, copy.type, copy.proto)


def _values(copy: socket.socket) -> Values:
    """The options of a socket; those that its kind does not have are left out."""
    values = {}
    is_stream = copy.type == socket.SOCK_STREAM
    for option in OPTIONS:
        if not (is_stream and option in MULTICAST):  # it has these, but does not use them
            with suppress(OSError):
                values[option] = copy.getsockopt(*option, _OPTION_BYTES)
    return values


def _usual(copies: Sequence[tuple[Found, socket.socket]]) -> dict[Kind, Values]:
    """The options of a new socket of each kind in the network namespace of *copies*."""
    kinds = sorted({_kind(copy) for _, copy in copies})
    if not kinds:
        return {}

    def look() -> list[list[tuple[int, int, str]]]:
        several = []
        for kind in kinds:
            with socket.socket(*kind) as new:
                several.append([(*option, value.hex()) for option, value in _values(new).items()])
        return several

    answers = namespaces.inside([f"/proc/{copies[0][0].pid}/ns/net"], look)
    return {
        kind: {(level, name): bytes.fromhex(value) for level, name, value in answer}
        for kind, answer in zip(kinds, answers, strict=True)
    }


def _set(copy: socket.socket, facts: SocketFacts, usual: Values) -> Iterator[str]:
    dumped = {(level, name): bytes.fromhex(value) for level, name, value in facts.options}
    now = _values(copy)
    changed = {
        option: value for option, value in (usual | dumped).items() if now.get(option) != value
    }
    for option, value in changed.items():
        # Only root may set another congestion control, and the kernel would load its module.
        if option != CONGESTION or value.rstrip(b"\0") in _free_congestion_controls():
            with suppress(OSError):  # the result is checked below
                copy.setsockopt(*option, value)
    now = _values(copy)
    for option, value in changed.items():
        if option in dumped and now.get(option) != value:
            has = now[option].hex() if option in now else "none"
            yield f"option {option[0]}/{option[1]} is {has}, was {value.hex()}"


def _free_congestion_controls() -> list[bytes]:
    with open("/proc/sys/net/ipv4/tcp_allowed_congestion_control", "rb") as file:
        return file.read().split()


def _listener(copy: socket.socket, inside: Mapping[int, int]) -> tuple[int, ...]:
    """The listener of a unix socket as SO_PEERCRED shows it to clients; empty if none listens."""
    if copy.family != socket.AF_UNIX or not copy.getsockopt(socket.SOL_SOCKET, _SO_ACCEPTCONN):
        return ()
    pid, uid, gid = struct.unpack("3i", copy.getsockopt(socket.SOL_SOCKET, _SO_PEERCRED, 12))
    return (inside.get(pid, 0), uid, gid)


def _listen_as(
    found: Found,
    listener: tuple[int, ...],
    pids: Mapping[int, int],
    backlog: int,
    holder: Holder,
) -> None:
    """Call listen(2) again in the process that had called it, which the kernel records."""
    pid = pids.get(listener[0])
    if pid is None:
        return
    link = f"socket:[{found.inode}]"
    fds = [fd for fd, opened in open_links(pid).items() if opened == link]
    if fds:
        holder.perform([Syscall(pid, _SYS_LISTEN, (fds[0], backlog))])


def _groups(copies: Sequence[tuple[Found, socket.socket]]) -> list[tuple[int, str, str]]:
    """All multicast groups that are joined in the network namespace of *copies*.

    Each is the interface's number and name, and the group.
    """
    if not copies:
        return []
    pid = copies[0][0].pid
    groups = []
    number, name = 0, ""
    for line in procfs.text(pid, "net/igmp").splitlines()[1:]:
        words = line.split()
        if line.startswith("\t"):
            group = socket.inet_ntop(socket.AF_INET, struct.pack("=I", int(words[0], 16)))
            groups.append((number, name, group))
        else:
            number, name = int(words[0]), words[1].rstrip(":")
    for line in procfs.text(pid, "net/igmp6").splitlines():
        words = line.split()
        address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(words[2]))
        groups.append((int(words[0]), words[1], address))
    return groups


def _memberships(
    copy: socket.socket, groups: Sequence[tuple[int, str, str]]
) -> Iterator[Membership]:
    """The groups that the socket has joined: the kernel returns a filter only for these."""
    level = _GROUP_LEVELS.get(copy.family)
    if level is None or copy.type == socket.SOCK_STREAM:
        return
    for number, name, group in groups:
        if ipaddress.ip_address(group).version != (4 if copy.family == socket.AF_INET else 6):
            continue
        request = struct.pack("I4x", number) + _address(group)
        buffer = ctypes.create_string_buffer(
            request + struct.pack("II", 0, _SOURCES_LIMIT), 144 + _SOURCES_LIMIT * _ADDRESS_BYTES
        )
        length = ctypes.c_uint32(len(buffer))
        with suppress(OSError):
            linux.call(
                "getsockopt",
                group,
                copy.fileno(),
                level,
                _MCAST_MSFILTER,
                buffer,
                ctypes.byref(length),
            )
            mode, count = struct.unpack_from("II", buffer, 8 + _ADDRESS_BYTES)
            places = range(144, 144 + min(count, _SOURCES_LIMIT) * _ADDRESS_BYTES, _ADDRESS_BYTES)
            sources = tuple(_host(buffer.raw[at : at + _ADDRESS_BYTES]) for at in places)
            yield Membership(group, name, mode, sources)


def _join(copy: socket.socket, memberships: Iterable[Membership], pid: int) -> Iterator[str]:
    for member in memberships:
        numbers = dict(_interfaces(pid))
        level = _GROUP_LEVELS.get(copy.family)
        if level is None or member.interface not in numbers:
            yield f"cannot join {member.group}: there is no interface {member.interface}"
            continue
        place = struct.pack("I4x", numbers[member.interface]) + _address(member.group)
        try:
            with suppress(FileExistsError):
                copy.setsockopt(level, _MCAST_JOIN_GROUP, place)
            if member.sources:
                head = place + struct.pack("II", member.mode, len(member.sources))
                several = b"".join(map(_address, member.sources))
                copy.setsockopt(level, _MCAST_MSFILTER, head + several)
        except OSError as error:
            yield f"cannot join {member.group} on {member.interface}: {error.strerror}"


def _interfaces(pid: int) -> list[tuple[str, int]]:
    def look() -> list[tuple[str, int]]:
        return [(name, number) for number, name in socket.if_nameindex()]

    interfaces: list[tuple[str, int]] = namespaces.inside([f"/proc/{pid}/ns/net"], look)
    return interfaces


def _address(text: str) -> bytes:
    """An address as a struct sockaddr_storage."""
    address = ipaddress.ip_address(text)
    if address.version == 4:
        packed = struct.pack("=HH", socket.AF_INET, 0) + address.packed
    else:
        packed = struct.pack("=HHI", socket.AF_INET6, 0, 0) + address.packed
    return packed.ljust(_ADDRESS_BYTES, b"\0")


def _host(data: bytes) -> str:
    (family,) = struct.unpack_from("=H", data)
    packed = data[4:8] if family == socket.AF_INET else data[8:24]
    return str(ipaddress.ip_address(packed))
