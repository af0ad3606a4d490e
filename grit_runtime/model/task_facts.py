"""State of processes that no image of CRIU holds: read at the checkpoint, set after the restore.

A process, thread or descriptor that is not listed has the state of a new one.
"""

from __future__ import annotations

import re

from grit_runtime.errors import ImageError
from grit_runtime.model.memory_range import MemoryRange  # noqa: TC001  the manifest is made by types
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# The kernel's default, unless an ancestor changed it.
CORE_DUMP_FILTER = 0x33
TIMER_SLACK_NS = 50_000

_CPU_LIMIT = 8192  # the largest CONFIG_NR_CPUS
_POLICY = re.compile(
    r"[a-z ()]{1,32}(?:=[a-z]{1,16})?(?::[0-9]{1,3}(?:[-,][0-9]{1,3})*)?", re.ASCII
)


class ThreadFacts(NamedTuple):
    """One thread, by its number in the container.

    *cpus* is empty where it may run on all of the container's; *memory_policy* as numa(7) writes
    it: ``bind:0-1``.
    """

    tid: int
    cpus: tuple[int, ...]
    io_priority: int  # ioprio_set(2)'s
    timer_slack_ns: int
    personality: int
    memory_policy: str


class Owner(NamedTuple):
    """Owner and mode of a pipe or a socket, if they differ from one that root made."""

    fd: int
    uid: int
    gid: int
    mode: int


class SocketOption(NamedTuple):
    level: int
    name: int
    value: str  # in hexadecimal digits


class Membership(NamedTuple):
    """A multicast group that a socket has joined, on the interface of that name.

    *sources* are the only ones that it receives, or those it excludes if *mode* is 0
    (MCAST_EXCLUDE).
    """

    group: str
    interface: str
    mode: int
    sources: tuple[str, ...]


class SocketFacts(NamedTuple):
    """One socket: options that differ from a new one of its kind; the listener of a unix socket."""

    fd: int
    options: tuple[SocketOption, ...]
    memberships: tuple[Membership, ...]
    listener: tuple[int, ...]  # pid in the container, uid and gid; empty if it is none


class RenamedSocket(NamedTuple):
    """The file of a unix socket that has other *names* than that it was bound to, absolute paths.

    *is_kept* says whether it has its first name too.
    """

    bound: str
    names: tuple[str, ...]
    is_kept: bool
    uid: int
    gid: int
    mode: int


class ProcessFacts(NamedTuple):
    """One process, by its number in the container."""

    pid: int
    core_dump_filter: int
    write_execute: int  # flags of PR_SET_MDWE
    threads: tuple[ThreadFacts, ...]
    owners: tuple[Owner, ...]
    sockets: tuple[SocketFacts, ...]
    guards: tuple[MemoryRange, ...]  # guard pages (MADV_GUARD_INSTALL)
    seals: tuple[MemoryRange, ...]  # mappings sealed by mseal
    renamed: tuple[RenamedSocket, ...]


def check(facts: Iterable[ProcessFacts]) -> None:
    """ImageError for values that no kernel could have shown: the facts are untrusted."""
    for process in facts:
        fields: list[tuple[str, object, bool]] = [
            ("core dump filter", process.core_dump_filter, process.core_dump_filter < 1 << 32),
            ("PR_SET_MDWE", process.write_execute, process.write_execute < 1 << 32),
        ]
        for thread in process.threads:
            fields += [
                ("cpus", thread.cpus, all(cpu < _CPU_LIMIT for cpu in thread.cpus)),
                ("I/O priority", thread.io_priority, thread.io_priority < 1 << 16),
                ("personality", thread.personality, thread.personality < 1 << 32),
                ("NUMA policy", thread.memory_policy, _is_policy(thread.memory_policy)),
            ]
        for owner in process.owners:
            fits = owner.mode < 1 << 12 and max(owner.uid, owner.gid) < 1 << 32
            fields.append(("owner", owner, fits))
        for file in process.renamed:
            names = (file.bound, *file.names)
            are_paths = all(name.startswith("/") and "\0" not in name for name in names)
            fits = are_paths and file.mode < 1 << 12 and max(file.uid, file.gid) < 1 << 32
            fields.append(("unix socket", file, fits))
        for one in process.sockets:
            fields.append(("listener", one.listener, len(one.listener) in {0, 3}))
            for membership in one.memberships:
                addresses = (membership.group, *membership.sources)
                fits = all(map(_is_address, addresses)) and membership.mode < 1 << 32
                fields.append(("multicast group", membership, fits))
        for name, value, fits in fields:
            if not fits:
                raise ImageError(f"process {process.pid}: {name} {value} is none that there can be")


def _is_policy(text: str) -> bool:
    return _POLICY.fullmatch(text) is not None


def _is_address(text: str) -> bool:
    import ipaddress  # few processes are in a multicast group

    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def differences(wanted: ThreadFacts, now: ThreadFacts) -> list[str]:
    """A line for each difference of a thread."""
    fields = zip(wanted._fields, wanted, now, strict=True)
    return [f"{name} is {has}, was {had}" for name, had, has in fields if has != had]


def usual_thread(tid: int) -> ThreadFacts:
    """The facts of a new thread."""
    return ThreadFacts(tid, (), 0, TIMER_SLACK_NS, 0, "default")


def usual(pid: int) -> ProcessFacts:
    """The facts of a new process."""
    return ProcessFacts(pid, CORE_DUMP_FILTER, 0, (), (), (), (), (), ())
