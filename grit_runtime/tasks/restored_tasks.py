"""Reading what the kernel shows of restored tasks while none of them runs.

Spec: proc_pid_status(5), proc_pid_fdinfo(5), proc_pid_mountinfo(5), proc_pid_limits(5).
"""

from __future__ import annotations

import os
from functools import cache

from grit_runtime.host import cgroup, overlay, procfs
from grit_runtime.host.procfs import security_label
from grit_runtime.model.namespaces import IN_PROC
from grit_runtime.model.restored_check import Descriptor, Mount, Process, Thread, Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any


_PROPAGATION = frozenset({"shared", "master"})
_LIMIT_COLUMN = 26
_UNLIMITED = 2**64 - 1
_LISTEN = "0A"


def read(pids: Mapping[int, int], init_pid: int, spec: dict[str, Any]) -> Tree:
    """The tree of *pids*, this node's by the container's; *init_pid* is its root on this node."""
    cgroups_path = spec["linux"].get("cgroupsPath", "")
    listening = cache(lambda: _listening(init_pid))
    return Tree(
        processes={inside: _process(pid, listening) for inside, pid in pids.items()},
        mounts=read_mounts(init_pid),
        node=_namespaces("self"),
        given={
            ns["type"]: os.stat(ns["path"]).st_ino
            for ns in spec["linux"]["namespaces"]
            if ns.get("path")
        },
        cgroup=cgroups_path,
        hierarchies=cgroup.hierarchies_with(cgroups_path),
    )


def read_mounts(pid: int) -> list[Mount]:
    """The mounts that a process sees; later ones are on top of earlier ones."""
    mounts = []
    for line in procfs.text(pid, "mountinfo").splitlines():
        # The last fields before the dash are optional: shared:2, master:1.
        _, _, _, _, path, options, *tags = line.partition(" - ")[0].split(" ")
        names = frozenset(tag.partition(":")[0] for tag in tags)
        mounts.append(
            Mount(overlay.unescaped(path), frozenset(options.split(",")), names & _PROPAGATION)
        )
    return mounts


def _process(pid: int, listening: Callable[[], frozenset[str]]) -> Process:
    statuses = {int(tid): procfs.status(int(tid)) for tid in os.listdir(f"/proc/{pid}/task")}
    threads = {procfs.container_pid(status): _thread(status) for status in statuses.values()}
    euid = int(statuses[pid]["Uid"].split()[1])
    return Process(
        threads=threads,
        oom_score_adj=int(procfs.text(pid, "oom_score_adj")),
        limits=_limits(pid),
        namespaces=_namespaces(pid),
        cgroups=cgroup.memberships(pid),
        descriptors=dict(_descriptors(pid, listening)),
        is_dumpable=os.stat(f"/proc/{pid}/status").st_uid == euid if euid else None,
        label=security_label(pid),
    )


def _thread(status: dict[str, str]) -> Thread:
    tid = int(status["Pid"])
    return Thread(
        status,
        policy=os.sched_getscheduler(tid),
        priority=os.sched_getparam(tid).sched_priority,
        nice=os.getpriority(os.PRIO_PROCESS, tid),
    )


def _limits(pid: int) -> list[tuple[int, int]]:
    limits = []
    for line in procfs.text(pid, "limits").splitlines()[1:]:
        soft, hard = line[_LIMIT_COLUMN:].split()[:2]
        limits.append((_limit(soft), _limit(hard)))
    return limits


def _limit(text: str) -> int:
    return _UNLIMITED if text == "unlimited" else int(text)


def _namespaces(who: int | str) -> dict[str, int]:
    return {name: os.stat(f"/proc/{who}/ns/{name}").st_ino for name in IN_PROC}


def _descriptors(
    pid: int, listening: Callable[[], frozenset[str]]
) -> Iterator[tuple[int, Descriptor]]:
    for name in os.listdir(f"/proc/{pid}/fd"):
        fields = procfs.text(pid, f"fdinfo/{name}").split(None, 4)  # pos: N flags: 0N ...
        link = os.readlink(f"/proc/{pid}/fd/{name}")
        listens = link.startswith("socket:") and link in listening()
        yield int(name), Descriptor(int(fields[3], 8), int(fields[1]), listens)


def _listening(pid: int) -> frozenset[str]:
    """The links of descriptors to the TCP sockets that listen in a process's network namespace.

    The kernel walks the tables of all network namespaces for it, 9 ms if they are large.
    """
    lines = [
        line.split()
        for table in ("net/tcp", "net/tcp6")
        for line in procfs.text(pid, table).splitlines()[1:]
    ]
    return frozenset(f"socket:[{words[9]}]" for words in lines if words[3] == _LISTEN)
