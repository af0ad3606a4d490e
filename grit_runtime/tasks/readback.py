"""State of tasks that no image holds: saved at the checkpoint, read back and mended at the restore.

The restored tasks are left stopped. ptrace keeps them stopped while /proc is compared with the
dump; what can be mended is mended, and anything else ends the restore before a task executes an
instruction.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import Any

from grit_runtime.errors import CommandError, ReadBackError
from grit_runtime.host import cgroup, namespaces, procfs
from grit_runtime.model import restored_check
from grit_runtime.model.dump import ALIVE
from grit_runtime.model.losses import Loss
from grit_runtime.startup.named import NamedTuple
from grit_runtime.tasks import (
    process_memory,
    ptrace,
    ptrace_agent,
    restored_tasks,
    socket_facts,
    socket_files,
    task_facts,
)
from grit_runtime.tasks.ptrace import Syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from grit_runtime.model.dump import Dump
    from grit_runtime.model.live_pod import LivePod
    from grit_runtime.model.restored_check import Images
    from grit_runtime.model.task_facts import ProcessFacts
    from grit_runtime.pod.running_container import RunningContainer
    from grit_runtime.tasks.ptrace_agent import Holder
    from grit_runtime.tasks.task_facts import Answers

_SHOWN = 5
_SYS_WAITID = 247  # on x86-64
_P_PID = 1
_CONTINUED = os.WCONTINUED | os.WNOHANG


class Asked(NamedTuple):
    """The answers that only the processes themselves could give, by pid, and what will be lost."""

    answers: dict[int, Answers]
    losses: tuple[Loss, ...]


class Restored(NamedTuple):
    """The stopped tasks of a container; *pids* maps the container's pids to this node's."""

    init_pid: int
    pids: Mapping[int, int]
    holder: Holder


def ask(containers: Sequence[RunningContainer], token: str) -> Asked:
    """Query, in the processes' own name, what nobody else can; each is stopped for it in turn."""
    from grit_runtime.tasks import landlock  # a restore asks nobody

    answers: dict[int, Answers] = {}
    losses = []
    for container in containers:
        if not ptrace.IS_SUPPORTED:
            continue
        if container.paused:
            text = "was paused by somebody else, and so could not be asked"
            losses.append(Loss("NotAsked", container.name, 0, text))
            continue
        standing = {pid: why for pid in container.pids() if (why := _stands(pid))}
        losses += [
            Loss("NotAsked", container.name, pid, f"{why}, and so cannot be asked")
            for pid, why in sorted(standing.items())
        ]
        pids = sorted(container.pids() - standing.keys())
        seals = {pid: process_memory.seals(pid) for pid in pids}
        try:
            with ptrace_agent.held(pids, token) as holder:
                answers |= task_facts.ask(pids, seals, holder)
                losses += [
                    Loss("LandlockLost", container.name, pid, "has put itself in a Landlock domain")
                    for pid in landlock.confined(pids, holder)
                ]
        except CommandError as error:
            text = f"could not be asked for MDWE, keys and Landlock: {error}"
            losses.append(Loss("NotAsked", container.name, 0, text))
    losses += [
        Loss("KeysLost", container.name, pid, "has keys in its session keyring, which will be gone")
        for container in containers
        for pid in sorted(container.pids() & answers.keys())
        if answers[pid].has_keys
    ]
    losses += [
        Loss(
            "PeerCredentials",
            container.name,
            pid,
            f"has a unix connection with {peer}, of which SO_PEERCRED will say root",
        )
        for container in containers
        for pid, peer in sorted(socket_facts.connected_by_others(container.pids()).items())
    ]
    return Asked(answers, tuple(losses))


def _stands(pid: int) -> str:
    """Why a process does not run, and makes no call in its own name; "" if it runs."""
    if procfs.is_stopped(pid):
        return "is stopped by a signal"
    return "is suspended by grit gpu" if ptrace_agent.keeper(pid) else ""


def read_facts(container: RunningContainer, asked: Asked) -> tuple[ProcessFacts, ...]:
    """The state of a frozen container's processes that no image of CRIU holds."""
    pids = procfs.pids_by_container_pid(sorted(container.pids()))
    return tuple(task_facts.read(pids, asked.answers))


@contextmanager
def held(init_pid: int) -> Iterator[Restored]:
    """Hold the stopped tasks of a container for as long as the block lasts."""
    all_pids = cgroup.pids(cgroup.of(init_pid)) | procfs.descendants(init_pid)
    pids = procfs.pids_by_container_pid(pid for pid in all_pids if not procfs.has_ended(pid))
    with ptrace_agent.held_in_stop(list(pids.values())) as holder:
        yield Restored(init_pid, pids, holder)


def check(restored: Restored, more: Images, dump: Dump, live: LivePod) -> None:
    """FailedPreconditionError if what was restored is not what the dump says."""
    tree = restored_tasks.read(restored.pids, restored.init_pid, live.spec)
    # CRIU 4.1 gives a root that was read-only back writable.
    wrong_flags = restored_check.wrong_mount_flags(dump, tree.mounts)
    if wrong_flags:
        namespaces.remount(restored.init_pid, wrong_flags)
        tree = tree._replace(mounts=restored_tasks.read_mounts(restored.init_pid))
    wrong = list(restored_check.differences(dump, more, live, tree))
    if wrong:
        rest = f" (and {len(wrong) - _SHOWN} more)" if len(wrong) > _SHOWN else ""
        raise ReadBackError(
            f"CRIU has not restored what was dumped: {'; '.join(wrong[:_SHOWN])}{rest}"
        )
    _open_windows(restored, dump, more)


def _open_windows(restored: Restored, dump: Dump, more: Images) -> None:
    windows = {
        file.id: more.windows[file.isk.ino] for file in dump.files if file.isk.ino in more.windows
    }
    for pid, entries in more.descriptors.items():
        for entry in entries:
            if entry.id in windows and pid in restored.pids:
                # Once for each socket, since several processes may share it.
                window_bytes = windows.pop(entry.id)
                socket_facts.open_window(restored.pids[pid], entry.fd, window_bytes)


def mend(
    restored: Restored, facts: Sequence[ProcessFacts], dump: Dump, more: Images
) -> tuple[str, ...]:
    """Give the tasks what no image of CRIU holds; what could not be given."""
    files = {file.id: file.usk.backlog for file in dump.files if file.HasField("usk")}
    backlogs = {
        (pid, entry.fd): files[entry.id]
        for pid, entries in more.descriptors.items()
        for entry in entries
        if entry.id in files
    }
    sockets = {process.pid: process.sockets for process in facts}
    return (
        *task_facts.mend(facts, restored.pids, restored.holder),
        *socket_facts.mend(sockets, restored.pids, backlogs, restored.holder),
        *socket_files.put_in_place(
            restored.init_pid, [file for process in facts for file in process.renamed]
        ),
    )


def give_streams(restored: Restored, spec: dict[str, Any]) -> None:
    """The part of `mend` that needs no facts: standard streams belong to the container's user."""
    task_facts.give_streams(restored.init_pid, spec["process"]["user"]["uid"])


def go_on(restored: Restored, dump: Dump) -> None:
    """Continue the tasks that ran when they were dumped; they run once they are released."""
    running = [
        task
        for task in dump.tasks
        if task.pid in restored.pids and dump.cores[task.pid].tc.task_state == ALIVE
    ]
    restored.holder.go_on([restored.pids[task.pid] for task in running])
    # A parent that waits with WCONTINUED would see that its child was continued.
    parents = [(restored.pids[t.ppid], t.pid) for t in running if t.ppid in restored.pids]
    calls = [Syscall(parent, _SYS_WAITID, (_P_PID, pid, 0, _CONTINUED)) for parent, pid in parents]
    restored.holder.perform(calls)
