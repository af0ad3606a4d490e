"""Reading the state of processes that no image of CRIU holds, and restoring it.

Spec: sched_setaffinity(2), ioprio_set(2), personality(2), set_mempolicy(2), numa(7), core(5),
proc_pid_timerslack_ns(5), PR_SET_MDWE(2const), keyctl(2).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
from contextlib import suppress

from grit_runtime.errors import CommandError
from grit_runtime.host import cgroup, linux, procfs
from grit_runtime.host.procfs import open_links, parent
from grit_runtime.model import task_facts
from grit_runtime.model.task_facts import Owner, ProcessFacts, ThreadFacts
from grit_runtime.startup.named import NamedTuple
from grit_runtime.tasks import process_memory, ptrace, socket_facts, socket_files
from grit_runtime.tasks.ptrace import Syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from grit_runtime.model.memory_range import MemoryRange
    from grit_runtime.tasks.ptrace_agent import Holder

_IOPRIO_SET, _IOPRIO_GET = (251, 252) if os.uname().machine == "x86_64" else (30, 31)
_WHO_PROCESS = 1

# On x86-64: only there can calls be made in a process's name.
_SYS_MMAP, _SYS_MUNMAP, _SYS_MADVISE, _SYS_PERSONALITY = 9, 11, 28, 135
_MADV_GUARD_INSTALL = 102
_SYS_PRCTL, _SYS_SET_MEMPOLICY, _SYS_KEYCTL, _SYS_MSEAL = 157, 238, 250, 462
_PR_SET_MDWE, _PR_GET_MDWE = 65, 66
_KEYCTL_READ = 11
_SESSION_KEYRING = 2**64 - 3
_MAP_PRIVATE_ANONYMOUS = 0x22

# Names of proc_pid_numa_maps(5) by the numbers of include/uapi/linux/mempolicy.h.
_POLICIES = (
    "default",
    "prefer",
    "bind",
    "interleave",
    "local",
    "prefer (many)",
    "weighted interleave",
)
_POLICY_FLAGS = {"static": 1 << 15, "relative": 1 << 14}
_FIRST_MAPPING_BYTES = 128
_NODE_LIMIT = 1024
_STREAMS = range(3)
_WITH_SLACK = (os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE)
# Pipes and sockets without a name: owner and mode if root made them, by the prefix of their links.
_ROOTS = {"pipe": (0, 0, 0o600), "socket": (0, 0, 0o777)}


class Answers(NamedTuple):
    """Facts that are read before the freeze.

    Only the process itself can query its MDWE flags and its keyring; seals take long to read.
    """

    write_execute: int
    has_keys: bool
    seals: tuple[MemoryRange, ...] = ()


def ask(
    pids: Sequence[int], seals: Mapping[int, Sequence[MemoryRange]], holder: Holder
) -> dict[int, Answers]:
    """Query stopped processes in their own name. A call that the kernel lacks gives the default."""
    mdwe = holder.perform([Syscall(pid, _SYS_PRCTL, (_PR_GET_MDWE,)) for pid in pids])
    keyring = (_KEYCTL_READ, _SESSION_KEYRING)
    keys = holder.perform([Syscall(pid, _SYS_KEYCTL, keyring) for pid in pids])
    return {
        pid: Answers(max(0, flags), size_bytes > 0, tuple(seals[pid]))
        for pid, flags, size_bytes in zip(pids, mdwe, keys, strict=True)
    }


def read(pids: Mapping[int, int], answers: Mapping[int, Answers]) -> Iterator[ProcessFacts]:
    """The processes that differ from new ones; *pids* maps the container's pids to the node's.

    Nothing may change them meanwhile.
    """
    any_pid = next(iter(pids.values()))
    cpus = _container_cpus(any_pid)
    sockets = socket_facts.read(pids)
    renamed = socket_files.renamed(any_pid, pids.values())
    for inside, pid in sorted(pids.items()):
        # A process that was forked since has inherited the answers of its parent.
        answer = answers.get(pid) or answers.get(parent(pid)) or Answers(0, has_keys=False)
        facts = ProcessFacts(
            inside,
            core_dump_filter=_core_dump_filter(pid),
            write_execute=answer.write_execute,
            threads=tuple(_threads(pid, cpus)),
            owners=tuple(_owners(pid)),
            sockets=sockets.get(inside, ()),
            guards=tuple(process_memory.guards(pid)),
            seals=answer.seals,
            renamed=tuple(socket.file for socket in renamed if socket.pid == pid),
        )
        if facts != task_facts.usual(inside):
            yield facts


def _core_dump_filter(pid: int) -> int:
    """The filter; the default if the first thread has ended, since it is then without memory."""
    return int(procfs.text(pid, "coredump_filter") or f"{task_facts.CORE_DUMP_FILTER:x}", 16)


def _threads(pid: int, cpus: frozenset[int]) -> Iterator[ThreadFacts]:
    for tid in sorted(map(int, os.listdir(f"/proc/{pid}/task"))):
        facts = _thread(tid, cpus)
        if facts != task_facts.usual_thread(facts.tid):
            yield facts


def _thread(tid: int, cpus: frozenset[int]) -> ThreadFacts:
    allowed = os.sched_getaffinity(tid)
    # A thread with a real-time policy has no slack, whatever was set.
    slack_ns = int(procfs.text(tid, "timerslack_ns") or 0) or task_facts.TIMER_SLACK_NS
    return ThreadFacts(
        tid=_number(tid),
        cpus=() if allowed >= cpus else tuple(sorted(allowed)),
        io_priority=_ioprio(_IOPRIO_GET, tid),
        timer_slack_ns=slack_ns,
        personality=int(procfs.text(tid, "personality") or "0", 16),
        memory_policy=_memory_policy(tid),
    )


def _number(tid: int) -> int:
    """The thread's tid in the container's pid namespace."""
    number = procfs.container_pid(procfs.status(tid))
    if not number:
        raise CommandError(f"thread {tid} has ended")
    return number


def _memory_policy(tid: int) -> str:
    """The thread's policy, which the kernel shows for a first mapping without its own policy."""
    line = ""
    with (
        suppress(FileNotFoundError, ProcessLookupError),  # a kernel without NUMA; no more memory
        open(f"/proc/{tid}/numa_maps", "rb", buffering=0) as file,
    ):
        line = file.read(_FIRST_MAPPING_BYTES).decode(errors="replace")
    rest = line.partition(" ")[2]
    names = [name for name in _POLICIES if rest.startswith(name)]
    name = max(names, key=len, default="default")
    return name + rest.removeprefix(name).partition(" ")[0]


def _container_cpus(pid: int) -> frozenset[int]:
    """All processors that the container may use; a thread that may use all is not pinned."""
    text = cgroup.cpus(cgroup.of(pid))
    if not text:
        with open("/sys/devices/system/cpu/online", encoding="ascii") as file:
            text = file.read().strip()
    return frozenset(_numbers(text))


def _owners(pid: int) -> Iterator[Owner]:
    for fd, link in open_links(pid).items():
        usual = _ROOTS.get(link.partition(":")[0])
        if usual:
            status = os.stat(f"/proc/{pid}/fd/{fd}")
            owner = Owner(fd, status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
            if owner[1:] != usual:
                yield owner


def mend(processes: Sequence[ProcessFacts], pids: Mapping[int, int], holder: Holder) -> list[str]:
    """Restore the state of *processes*; returns a line for each failure.

    *pids* maps the container's pids to the node's; these are stopped.
    """
    by_pid = {facts.pid: facts for facts in processes}
    cpus = _container_cpus(next(iter(pids.values())))
    failures = []
    for inside, pid in pids.items():
        facts = by_pid.get(inside, task_facts.usual(inside))
        failures += [f"process {inside}: {line}" for line in _mend_process(pid, facts, holder)]
        threads = {thread.tid: thread for thread in facts.threads}
        for tid in map(int, os.listdir(f"/proc/{pid}/task")):
            now = _thread(tid, cpus)
            thread = threads.get(now.tid, task_facts.usual_thread(now.tid))
            if now != thread:
                _mend_thread(tid, thread, cpus, holder)
                now = _thread(tid, cpus)
            lines = task_facts.differences(thread, now)
            failures += [f"thread {now.tid}: {line}" for line in lines]
    return failures


def give_streams(init_pid: int, uid: int) -> None:
    """Give the standard streams of a container's first process to its user, as runc does at create.

    Spec: opencontainers/runc libcontainer/init_linux.go fixStdioPermissions@v1.3.6.
    """
    for fd, link in open_links(init_pid).items():
        if fd in _STREAMS and link.partition(":")[0] in _ROOTS:
            os.chown(f"/proc/{init_pid}/fd/{fd}", uid, -1)


def _mend_process(pid: int, facts: ProcessFacts, holder: Holder) -> Iterator[str]:
    if _core_dump_filter(pid) != facts.core_dump_filter:
        _write(f"/proc/{pid}/coredump_filter", f"{facts.core_dump_filter:#x}")
    if ptrace.IS_SUPPORTED:
        yield from _mend_memory(pid, facts, holder)
    for owner in facts.owners:
        path = f"/proc/{pid}/fd/{owner.fd}"
        # Any other link would lead to a file of the pod or of the node.
        if os.readlink(path).partition(":")[0] in _ROOTS:
            os.chown(path, owner.uid, owner.gid)
            if stat.S_IMODE(os.stat(path).st_mode) != owner.mode:
                os.chmod(path, owner.mode)


def _mend_memory(pid: int, facts: ProcessFacts, holder: Holder) -> Iterator[str]:
    if facts.write_execute:
        mdwe = Syscall(pid, _SYS_PRCTL, (_PR_SET_MDWE, facts.write_execute))
        [result] = holder.perform([mdwe])
        if result:
            yield f"PR_SET_MDWE: {os.strerror(-result)}"
    if facts.guards:  # CRIU before 4.2 does not restore them
        there = set(process_memory.guards(pid))
        lost = [guard for guard in facts.guards if guard not in there]
        install = [
            Syscall(pid, _SYS_MADVISE, (guard.start, guard.size_bytes, _MADV_GUARD_INSTALL))
            for guard in lost
        ]
        if any(holder.perform(install)):
            yield f"{len(lost)} guard pages could not be installed"
    seals = [Syscall(pid, _SYS_MSEAL, (seal.start, seal.size_bytes, 0)) for seal in facts.seals]
    if any(holder.perform(seals)):
        yield "not all memory that was sealed (mseal) could be sealed again"


def _mend_thread(tid: int, facts: ThreadFacts, cpus: frozenset[int], holder: Holder) -> None:
    """Set what can be set; the caller checks the result."""
    with suppress(OSError):  # the container may use none of these processors here
        os.sched_setaffinity(tid, facts.cpus or cpus)
    _ioprio(_IOPRIO_SET, tid, facts.io_priority)
    if os.sched_getscheduler(tid) in _WITH_SLACK:
        _write(f"/proc/{tid}/timerslack_ns", str(facts.timer_slack_ns))
    if ptrace.IS_SUPPORTED:
        holder.perform([Syscall(tid, _SYS_PERSONALITY, (facts.personality,))])
        if facts.memory_policy != _memory_policy(tid):
            _set_memory_policy(tid, facts.memory_policy, holder)


def _set_memory_policy(tid: int, text: str, holder: Holder) -> None:
    """Set a policy like ``bind=static:0-1``."""
    words, _, nodes = text.partition(":")
    name, _, flag = words.partition("=")
    if name not in _POLICIES:
        return
    mode = _POLICIES.index(name) | _POLICY_FLAGS.get(flag, 0)
    mask = sum(1 << node for node in _numbers(nodes))
    page = (0, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, _MAP_PRIVATE_ANONYMOUS, 2**64 - 1)
    [place] = holder.perform([Syscall(tid, _SYS_MMAP, page)])
    if place > 0:
        with open(f"/proc/{tid}/mem", "r+b", buffering=0) as memory:
            memory.seek(place)
            memory.write(mask.to_bytes(mmap.PAGESIZE, "little"))
        policy = (mode, place if mask else 0, _NODE_LIMIT if mask else 0)
        holder.perform([Syscall(tid, _SYS_SET_MEMPOLICY, policy)])
        holder.perform([Syscall(tid, _SYS_MUNMAP, (place, mmap.PAGESIZE))])


def _ioprio(number: int, tid: int, *value: int) -> int:
    arguments = map(ctypes.c_long, (number, _WHO_PROCESS, tid, *value))
    return linux.result("syscall", f"I/O priority of thread {tid}", *arguments)


def _numbers(text: str) -> set[int]:
    """The numbers of a list like ``0-2,5``."""
    numbers: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return numbers


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
