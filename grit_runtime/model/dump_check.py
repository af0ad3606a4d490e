"""Why CRIU could not dump the processes of a pod, or not bring them back as they are. Pure.

CRIU itself finds most of this out, but only when the pod is frozen, and in words that name no way
out; the rest it takes, and what comes back is less than it was.
"""

from __future__ import annotations

import re
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

_SHARED = frozenset({"shared", "rshared"})
_SLAVE = frozenset({"slave", "rslave"})

# What stays one word in CRIU's configuration file: a blank would make an option of the rest.
_PLAIN_PATH = re.compile(r"/[\w./+,:@%=~-]+", re.ASCII)


class ProcessFacts(NamedTuple):
    """A process as /proc shows it.

    *unix_peers* are names of the unix sockets that it has one end of, the other end being outside
    of its container; *nameless_watches* inodes that it watches and that no name leads to.
    *cannot_stir* is a process stopped by a signal, where the freezer is cgroup v1's.
    """

    pid: int
    container: str
    has_io_uring: bool = False
    tracer_pid: int = 0
    unix_peers: tuple[str, ...] = ()
    nameless_watches: tuple[int, ...] = ()
    cannot_stir: bool = False


class ContainerFacts(NamedTuple):
    """A container: *mounts* of its config.json, and where something is mounted in it now."""

    name: str
    mounts: Sequence[Mapping[str, Any]]
    mountpoints: Sequence[str]


def refusals(containers: Iterable[ContainerFacts], processes: Iterable[ProcessFacts]) -> list[str]:
    """One line for each reason, with what to do; empty when nothing is known against a dump."""
    reasons = [reason for container in containers for reason in _mount_refusals(container)]
    return reasons + [reason for process in processes for reason in _process_refusals(process)]


def watch_options(paths: Iterable[str]) -> tuple[str, ...]:
    """Lines that have CRIU look for watched inodes at *paths*, or in the directories above them."""
    scanned = {_plain_above(path) for path in paths} - {""}
    return tuple(f"irmap-scan-path {path}" for path in sorted(scanned))


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


def _process_refusals(process: ProcessFacts) -> list[str]:
    where = f"process {process.pid} in container {process.container}"
    reasons = []
    if process.has_io_uring:
        reasons.append(
            f"{where} has an io_uring, which CRIU cannot dump; disable it (UV_USE_IO_URING=0 for "
            "libuv)"
        )
    reasons += traced(where, process.tracer_pid)
    if process.cannot_stir:
        reasons.append(
            f"{where} is stopped by a signal, and so CRIU would wait for it for ever under cgroup "
            "v1's freezer; let it go on (SIGCONT), or end it"
        )
    reasons += [
        f"{where} has one end of a connection over the unix socket {name}, whose other end is not "
        "in the container; close it for the checkpoint, or let both ends be in one container"
        for name in process.unix_peers
    ]
    reasons += [
        f"{where} watches inode {inode} (inotify), to which no name in the container leads; end "
        "the watch, or put what it watches into a volume"
        for inode in process.nameless_watches
    ]
    return reasons


def _plain_above(path: str) -> str:
    while path and not _PLAIN_PATH.fullmatch(path):
        path = path.rpartition("/")[0]
    return path
