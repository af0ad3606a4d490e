"""Finding why CRIU could not dump the processes of a pod, or not restore them unchanged. Pure.

CRIU itself detects most of this, but only when the pod is frozen, and without naming a remedy; the
rest it dumps, and restores incompletely.
"""

from __future__ import annotations

import re

from grit_runtime.model import pod_check
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence, Set
    from typing import Any

_SYSV = "/SYSV"  # followed by the key, instead of a name
_SHARED = frozenset({"shared", "rshared"})
_SLAVE = frozenset({"slave", "rslave"})

# Paths that stay one word in CRIU's configuration file: after a blank it reads an option.
_PLAIN_PATH = re.compile(r"/[\w./+,:@%=~-]+", re.ASCII)


# The kernel's anonymous inodes that CRIU dumps: it refuses the others.
_DUMPABLE_INODES = frozenset(
    {
        "[eventfd]",
        "[eventpoll]",
        "[fanotify]",
        "[io_uring]",  # told apart
        "[pidfd]",
        "[signalfd]",
        "[timerfd]",
        "bpf-map",
        "inotify",
    }
)
_WAYS_OUT = {
    "[perf_event]": "end the profiler",
    "[userfaultfd]": "have it handle no page faults itself",
    "seccomp notify": "end the sandbox that it supervises",
}
_DUMPABLE_PROTOCOLS = frozenset(
    {
        *("NETLINK", "PACKET", "UNIX", "UNIX-STREAM", ""),
        *(f"{name}{v6}" for name in ("PING", "RAW", "TCP", "UDP") for v6 in ("", "v6")),
        *("UDP-Lite", "UDPLITEv6"),
    }
)

# criu/include/pipes.h NR_PIPES_WITH_DATA, those with an end to read from
PIPES_LIMIT = 1024


class Descriptor(NamedTuple):
    """A descriptor of a process: *link* of /proc/PID/fd, and a socket's *protocol*.

    *is_path_alone* means a fifo or a socket opened with O_PATH; *is_elsewhere* a file on a mount
    that the container does not have.
    """

    link: str
    protocol: str = ""
    is_packet_pipe: bool = False
    is_read: bool = False
    is_path_alone: bool = False
    is_elsewhere: bool = False


class ProcessFacts(NamedTuple):
    """A process as /proc shows it.

    *unix_peers* are names of the unix sockets that it has one end of, the other end being outside
    of its container; *nameless_watches* inodes that it watches and that no name leads to.
    *stopped_on_cgroup_v1* is a process stopped by a signal, where the freezer is cgroup v1's.
    *namespaces* are the kinds in which it is in another than the first process of its container.
    *displaced_sockets* were bound to the first name, which another file has now, and have the
    second. The driver closes descriptors of a process that *uses_gpus* before the dump. *apart* are
    threads that have to themselves what the others share, and what that is. *has_own_timer* is one
    with a POSIX timer that signals its first thread, by the number that this has in the container.
    *shared* is what it has in common with its parent, though it is no thread of it.
    """

    pid: int
    container: str
    has_io_uring: bool = False
    tracer_pid: int = 0
    unix_peers: tuple[str, ...] = ()
    nameless_watches: tuple[int, ...] = ()
    stopped_on_cgroup_v1: bool = False
    descriptors: tuple[Descriptor, ...] = ()
    has_secret_memory: bool = False
    namespaces: tuple[str, ...] = ()
    uses_gpus: bool = False
    is_without_first_thread: bool = False
    is_32_bit: bool = False
    displaced_sockets: tuple[tuple[str, str], ...] = ()
    apart: tuple[tuple[int, str], ...] = ()
    has_own_timer: bool = False
    shared: tuple[str, ...] = ()


class ContainerFacts(NamedTuple):
    """A container: *mounts* of its config.json, and its present mountpoints."""

    name: str
    mounts: Sequence[Mapping[str, Any]]
    mountpoints: Sequence[str]


class DeletedFile(NamedTuple):
    """A deleted file that a process has open or mapped; *is_written* if it may write to it."""

    device: int
    inode: int
    name: str  # that it had
    is_written: bool


def torn_apart(used: Mapping[str, Set[DeletedFile]]) -> list[str]:
    """One line for each deleted file that several containers use and one of them writes to.

    Each would get a copy of its own, and none would see what another writes. SysV shared memory is
    among these files: only one container may have any.
    """
    attached = [
        name for name, files in used.items() if any(file.name.startswith(_SYSV) for file in files)
    ]
    sysv = pod_check.sysv_refusal(attached)
    users: dict[tuple[int, int], dict[str, list[DeletedFile]]] = {}
    for container, files in used.items():
        for file in files:
            if file.name.startswith(_SYSV):
                continue
            found = users.setdefault((file.device, file.inode), {})
            found.setdefault(container, []).append(file)
    reasons = [sysv] if sysv else []
    return reasons + [
        f"{next(iter(found.values()))[0].name} was deleted, and is open in the containers "
        f"{' and '.join(found)}, each of which would get a copy of its own; keep the name until "
        "the checkpoint is taken, or close it in all but one"
        for found in users.values()
        if len(found) > 1 and any(file.is_written for files in found.values() for file in files)
    ]


def refusals(containers: Iterable[ContainerFacts], processes: Iterable[ProcessFacts]) -> list[str]:
    """One line for each reason, with what to do; empty when nothing is known against a dump."""
    reasons = [reason for container in containers for reason in _mount_refusals(container)]
    known = list(processes)
    reasons += _pipe_refusals(known)
    return reasons + [reason for process in known for reason in _process_refusals(process)]


def watch_options(paths: Iterable[str]) -> tuple[str, ...]:
    """Lines that make CRIU look for watched inodes at *paths*, or in the directories above them."""
    scanned = {_plain_above(path) for path in paths} - {""}
    return tuple(f"irmap-scan-path {path}" for path in sorted(scanned))


def hang_up(fifo: str) -> str:
    """The text of the loss for a process that reads *fifo*, which had no writer yet."""
    return (
        f"will be told that {fifo} has lost its writer (POLLHUP), though none has come yet; have "
        "it open the fifo for writing too"
    )


def traced(where: str, tracer_pid: int) -> list[str]:
    """The refusal of a process, which *where* names, if another traces it (*tracer_pid*; or 0)."""
    return [f"{where} is traced by process {tracer_pid}; detach the debugger"] if tracer_pid else []


def _mount_refusals(container: ContainerFacts) -> list[str]:
    where = f"container {container.name}"
    ordered = {
        mount["destination"]: frozenset(mount.get("options") or ()) for mount in container.mounts
    }
    reasons = [
        f"{where}: {place} is mounted with mountPropagation Bidirectional, which a restore would "
        "cut off from the node; use HostToContainer"
        for place, options in ordered.items()
        if options & _SHARED
    ]
    slaves = tuple(f"{place}/" for place, options in ordered.items() if options & _SLAVE)
    reasons += [
        f"{where}: {place} was mounted by the node through mountPropagation HostToContainer, "
        "which CRIU cannot dump; unmount it on the node"
        for place in container.mountpoints
        if place.startswith(slaves) and place not in ordered
    ]
    return reasons


def _thread_refusals(where: str, process: ProcessFacts) -> list[str]:
    timer = (
        f"{where} has a timer that signals its first thread (SIGEV_THREAD_ID), whose number CRIU "
        "dumps wrong; have it signal another thread or the process, or end the profiler"
    )
    return (
        [timer] * process.has_own_timer
        + [
            f"{where} has a thread, {tid}, with {what} of its own (unshare), which would not come "
            "back; have it do so in a process of its own"
            for tid, what in process.apart
        ]
        + [
            f"{where} shares {what} with its parent, which CRIU cannot dump; use a thread, or fork"
            for what in process.shared
        ]
        + [
            f"{where} is in a {kind} namespace of its own, which would not come back; have it stay "
            "in its container's"
            for kind in process.namespaces
        ]
    )


def _process_refusals(process: ProcessFacts) -> list[str]:
    where = f"process {process.pid} in container {process.container}"
    reasons = []
    if process.has_io_uring:
        reasons.append(
            f"{where} has an io_uring, which CRIU cannot dump; deny it (seccompProfile "
            "RuntimeDefault does, or kernel.io_uring_disabled=2 on the node; UV_USE_IO_URING=0 is "
            "enough for libuv before 1.49 alone)"
        )
    reasons += traced(where, process.tracer_pid)
    if process.is_without_first_thread:
        reasons.append(
            f"{where} has lost its first thread and runs on in others, which CRIU cannot dump; "
            "have main wait for them"
        )
    if process.is_32_bit:
        reasons.append(f"{where} is a 32-bit program, which cannot be moved; end it")
    if process.stopped_on_cgroup_v1:
        reasons.append(
            f"{where} is stopped by a signal, and so CRIU would wait for it for ever under cgroup "
            "v1's freezer; let it go on (SIGCONT), or end it"
        )
    reasons += _thread_refusals(where, process)
    reasons += [
        f"{where} has one end of a connection over the unix socket {name}, whose other end is not "
        "in the container; close it for the checkpoint, or let both ends be in one container"
        for name in process.unix_peers
    ]
    if process.has_secret_memory:
        reasons.append(
            f"{where} has secret memory (memfd_secret), which nobody else can read; have it keep "
            "its secrets in ordinary memory"
        )
    reasons += [
        f"{where} has the unix socket {name}, which was bound as {bound} and then renamed: CRIU "
        f"would bind it there again, where another file is now; have it bind {name}"
        for bound, name in process.displaced_sockets
    ]
    told = (_descriptor_refusal(one, uses_gpus=process.uses_gpus) for one in process.descriptors)
    reasons += [f"{where} {text}" for text in dict.fromkeys(told) if text]
    reasons += [
        f"{where} watches inode {inode} (inotify), to which no name in the container leads; end "
        "the watch, or put what it watches into a volume"
        for inode in process.nameless_watches
    ]
    return reasons


def _descriptor_refusal(descriptor: Descriptor, *, uses_gpus: bool) -> str:
    """Why CRIU cannot dump the descriptor; "" if it can."""
    link, protocol = descriptor.link, descriptor.protocol
    kind = link.removeprefix("anon_inode:")
    reasons = {
        f"a descriptor of {kind.strip('[]')}": _WAYS_OUT.get(kind, "close it for the checkpoint")
        if kind not in {link, *_DUMPABLE_INODES} and not uses_gpus
        else "",
        "an MPTCP socket": "have it use TCP (GODEBUG=multipathtcp=0 for Go)"
        if protocol.startswith("MPTCP")
        else "",
        f"a socket of {protocol}": "close it for the checkpoint"
        if protocol not in _DUMPABLE_PROTOCOLS and not protocol.startswith("MPTCP")
        else "",
        "a pipe in packet mode (O_DIRECT)": "use one without" if descriptor.is_packet_pipe else "",
        f"{link}, a fifo or a socket, open with O_PATH": "close it for the checkpoint"
        if descriptor.is_path_alone
        else "",
        f"{link} open, which is on no mount of its container (as POSIX message queues are)": (
            "close it for the checkpoint" if descriptor.is_elsewhere and not uses_gpus else ""
        ),
    }
    told = [f"has {what}, which CRIU cannot dump; {way}" for what, way in reasons.items() if way]
    return "; ".join(told)


def _pipe_refusals(processes: Sequence[ProcessFacts]) -> list[str]:
    """Refuse more pipes than CRIU's table for the content of a container's pipes can hold."""
    pipes: dict[str, set[str]] = {}
    most: dict[str, tuple[int, int]] = {}
    for process in processes:
        read = {
            one.link for one in process.descriptors if one.is_read and one.link.startswith("pipe:")
        }
        pipes.setdefault(process.container, set()).update(read)
        count = (len(read), process.pid)
        most[process.container] = max(count, most.get(process.container, count))
    return [
        f"process {most[name][1]} in container {name} has {most[name][0]} pipes to read from, of "
        f"{len(found)} in the container, and CRIU dumps {PIPES_LIMIT}; close some"
        for name, found in pipes.items()
        if len(found) > PIPES_LIMIT
    ]


def _plain_above(path: str) -> str:
    while path and not _PLAIN_PATH.fullmatch(path):
        path = path.rpartition("/")[0]
    return path
