"""What /proc says about processes; zeros and empty texts for a process that has gone."""

from __future__ import annotations

import errno
import os
import signal
import stat
from contextlib import suppress

from grit_runtime.model.namespaces import IN_PROC
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


# The functions of the kernel that proc_pid_wchan(5) names.
_VFORK = "its vfork, whose child has not yet begun its program or ended"


_UNSTOPPABLE = {
    "kernel_clone": _VFORK,
    "wait_for_vfork_done": _VFORK,
    "rpc_wait_bit_killable": "an NFS server",
}


# In the flags and the signals of proc_pid_stat(5). The kernel gives each thread its own SIGKILL.
_PF_EXITING = 4  # include/linux/sched.h
_SIGKILL_PENDING = 1 << (signal.SIGKILL - 1)


class UsedFile(NamedTuple):
    """A file by its name in the container, and whether the process has it open for writing."""

    path: str
    is_written: bool


def names() -> dict[int, str]:
    """The names of all processes, as /proc/PID/comm has them."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    return {pid: text(pid, "comm").rstrip("\n") for pid in pids}


def is_ending(pid: int) -> bool:
    """Whether a process was killed, has begun to end, or has gone.

    Its descriptors are closed after that; a frozen one that was killed ends once it is thawed.
    """
    fields = _stat(pid)
    return not fields or bool(int(fields[6]) & _PF_EXITING or int(fields[28]) & _SIGKILL_PENDING)


def started_ticks(pid: int) -> int | None:
    """The start time of a process, which with its pid identifies it. None if it has gone."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def all_started_ticks(pids: Iterable[int]) -> tuple[int | None, ...]:
    """As `started_ticks`, of each."""
    return tuple(map(started_ticks, pids))


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped a process (SIGSTOP, SIGTSTP), and none has continued it."""
    return _stat(pid)[:1] == ["T"]


def is_zombie(tid: int) -> bool:
    """Whether a thread has ended, but was not waited for."""
    return _stat(tid)[:1] == ["Z"]


def has_ended(pid: int) -> bool:
    """Whether a process has ended, but was not waited for."""
    return is_zombie(pid) and not is_without_first_thread(pid)


def is_without_first_thread(pid: int) -> bool:
    """Whether the first thread of a process has ended, and others have not."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return is_zombie(pid) and len(os.listdir(f"/proc/{pid}/task")) > 1
    return False


def is_32_bit(pid: int) -> bool:
    """Whether a process runs a 32-bit program. Spec: System V gABI, EI_CLASS of an ELF file."""
    with suppress(OSError), open(f"/proc/{pid}/exe", "rb", buffering=0) as program:
        return program.read(5)[4:] == b"\1"
    return False  # it has ended


def cannot_be_stopped(pid: int) -> str:
    """What a thread of a process waits for that only SIGKILL interrupts; "" if there is none.

    A thread that is frozen in such a wait does not stop for a tracer either.
    Source: linux kernel/fork.c wait_for_vfork_done, net/sunrpc/sched.c rpc_wait_bit_killable.
    """
    with suppress(FileNotFoundError, ProcessLookupError):
        for tid in os.listdir(f"/proc/{pid}/task"):
            place = text(pid, f"task/{tid}/wchan")
            if place in _UNSTOPPABLE:
                return _UNSTOPPABLE[place]
    return ""


def is_in_kernel(pid: int) -> bool:
    """Whether a thread of a process is in an uninterruptible wait (state D)."""
    with suppress(FileNotFoundError, ProcessLookupError):
        tids = os.listdir(f"/proc/{pid}/task")
        return any(_stat(pid, f"task/{tid}/stat")[:1] == ["D"] for tid in tids)
    return False


def moving_threads(pid: int) -> list[int]:
    """The threads of a process that no tracer holds stopped."""
    with suppress(FileNotFoundError, ProcessLookupError):
        tids = map(int, os.listdir(f"/proc/{pid}/task"))
        return [tid for tid in tids if _stat(tid)[:1] not in (["t"], ["Z"], ["X"])]
    return []


def children(pid: int) -> list[int]:
    """The children of a process, including those that have ended and were not waited for."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except FileNotFoundError:
        return []
    return [int(n) for tid in threads for n in text(pid, f"task/{tid}/children").split()]


def descendants(pid: int) -> set[int]:
    """A process and all its descendants."""
    family: set[int] = set()
    left = [pid]
    while left:
        member = left.pop()
        family.add(member)
        left += [child for child in children(member) if child not in family]
    return family


def security_label(pid: int) -> str:
    """A process's label of the major security module (AppArmor, SELinux); empty without one."""
    try:
        return text(pid, "attr/current").rstrip("\0\n")
    except OSError:  # EINVAL: no module has it
        return ""


def killed_by(pid: int) -> int:
    """The signal that has killed a process which was not waited for yet; 0 for any other."""
    fields = _stat(pid)
    return int(fields[49]) & 0x7F if fields[:1] == ["Z"] else 0


def text(pid: int, name: str) -> str:
    """A file of /proc/PID; empty if the process has gone, or may not be inspected."""
    try:
        with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
            return file.read().decode(errors="surrogateescape")
    except (ProcessLookupError, FileNotFoundError, PermissionError):
        return ""
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: the mounts of a zombie
            raise
        return ""


def open_links(pid: int) -> dict[int, str]:
    """The links of /proc/PID/fd by descriptor; empty if the process has gone."""
    links = {}
    with suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):
                links[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return links


def namespaces(pid: int) -> dict[str, str]:
    """The namespaces that a process is in: ``user:[4026531837]`` by kind; none if it is gone."""
    links = {}
    with suppress(FileNotFoundError, ProcessLookupError):
        for kind in (*IN_PROC, "time"):
            links[kind] = os.readlink(f"/proc/{pid}/ns/{kind}")
    return links


def parent(pid: int) -> int:
    """The parent of a process; 0 when it has gone."""
    return _status_number(pid, "PPid")


def tracer(pid: int) -> int:
    """The pid of the tracer of a process; 0 without one."""
    return _status_number(pid, "TracerPid")


def is_like_us(pid: int) -> bool:
    """Whether a process is of our user, and numbers processes as we do."""
    with suppress(FileNotFoundError):
        is_our_users = os.stat(f"/proc/{pid}").st_uid == os.geteuid()
        return is_our_users and namespaces(pid).get("pid") == namespaces(os.getpid()).get("pid")
    return False


def anonymous_bytes(pid: int) -> int:
    """The memory of a process that is in no file, in RAM or swapped out; 0 when it has gone."""
    return (_status_number(pid, "RssAnon") + _status_number(pid, "VmSwap")) << 10


def status(pid: int) -> dict[str, str]:
    """The fields of proc_pid_status(5); none when the process or thread has gone."""
    return dict([line.split(":\t", 1) for line in text(pid, "status").splitlines()])


def container_pid(status: Mapping[str, str]) -> int:
    """The pid of a process or thread in its innermost pid namespace; 0 if it has gone."""
    return int(status["NSpid"].split()[-1]) if "NSpid" in status else 0


def _status_number(pid: int, field: str) -> int:
    return int(status(pid).get(field, "0").split()[0])


def files(pid: int) -> list[UsedFile]:
    """Files, not deleted, that a process has open or mapped or works in; none if it has gone.

    Spec: proc_pid_fd(5), proc_pid_maps(5), proc_pid_cwd(5).
    """
    used = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):
                link = f"/proc/{pid}/fd/{name}"
                is_written = bool(os.lstat(link).st_mode & stat.S_IWUSR)  # the descriptor's mode
                used.append(UsedFile(os.readlink(link), is_written))
        used.append(UsedFile(os.readlink(f"/proc/{pid}/cwd"), is_written=False))
    for line in text(pid, "maps").splitlines():
        _, flags, _, _, _, *path = line.split(None, 5)  # anonymous memory has none
        is_written = flags.startswith("rw") and flags.endswith("s")
        used += [UsedFile(name.replace(r"\012", "\n"), is_written) for name in path]
    return [
        file for file in used if file.path.startswith("/") and not file.path.endswith(" (deleted)")
    ]


def _stat(pid: int, name: str = "stat") -> list[str]:
    """proc_pid_stat(5) from its third field on; empty when the process has gone."""
    return text(pid, name).rpartition(")")[2].split()


def pids_by_container_pid(pids: Iterable[int]) -> dict[int, int]:
    """The node's pids by those of the innermost pid namespace."""
    return {inside: pid for pid, inside in container_pids(pids).items()}


def container_pids(pids: Iterable[int]) -> dict[int, int]:
    """The pids of the innermost pid namespace by the node's."""
    numbers = {pid: container_pid(status(pid)) for pid in pids}
    return {pid: number for pid, number in numbers.items() if number}
