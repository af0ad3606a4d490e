"""Reading and changing a pod's namespaces from inside: hostname, IPC limits, pids, mounts."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from typing import Any

from grit_runtime.errors import CommandError
from grit_runtime.host import linux, process, procfs
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# The /proc/sys files of an IPC namespace, by the field of CRIU's ipc_var_entry that they fill.
IPC_SYSCTLS = {
    "sem_ctls": "kernel/sem",
    "msg_ctlmax": "kernel/msgmax",
    "msg_ctlmnb": "kernel/msgmnb",
    "msg_ctlmni": "kernel/msgmni",
    "auto_msgmni": "kernel/auto_msgmni",
    "shm_ctlmax": "kernel/shmmax",
    "shm_ctlall": "kernel/shmall",
    "shm_ctlmni": "kernel/shmmni",
    "shm_rmid_forced": "kernel/shm_rmid_forced",
    "mq_queues_max": "fs/mqueue/queues_max",
    "mq_msg_max": "fs/mqueue/msg_max",
    "mq_msgsize_max": "fs/mqueue/msgsize_max",
    "mq_msg_default": "fs/mqueue/msg_default",
    "mq_msgsize_default": "fs/mqueue/msgsize_default",
}


class PodNamespaces(NamedTuple):
    """The values of the namespaces; empty for a namespace that was not given."""

    node_name: str
    domain_name: str
    ipc_sysctls: dict[str, list[int]]  # by the fields of IPC_SYSCTLS


def join_and_read(uts_path: str | None, ipc_path: str | None) -> PodNamespaces:
    """Host name and NIS domain name in a UTS namespace, and the limits of an IPC namespace.

    The calling process stays in both, so it must do nothing else afterwards.
    """
    for path in filter(None, (uts_path, ipc_path)):
        linux.setns(path)
    node_name, domain_name = _read_names() if uts_path else ("", "")
    return PodNamespaces(node_name, domain_name, _read_sysctls() if ipc_path else {})


def inside(paths: Sequence[str], look: Callable[[], object]) -> Any:
    """What *look* returns in a child that has joined the namespaces, as setns cannot be undone.

    CommandError with the child's own reason if it fails.
    """

    def joined() -> object:
        for path in paths:
            linux.setns(path)
        return look()

    with process.beside(joined) as answer:
        try:
            return answer()
        except CommandError as error:
            raise CommandError(f"in namespaces {' and '.join(paths)}: {error}") from None


def tasks(pid_path: str) -> dict[int, str]:
    """Names of the threads in the PID namespace at *pid_path*, by their tids in it."""
    inode = os.stat(pid_path).st_ino
    names = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # the process has ended
            if os.stat(f"/proc/{pid}/ns/pid").st_ino == inode:
                for tid in os.listdir(f"/proc/{pid}/task"):
                    status = procfs.status(int(tid))
                    if status:  # the thread lives
                        names[procfs.container_pid(status)] = status["Name"]
    return names


def remount(pid: int, flags: Mapping[str, int]) -> None:
    """Change the flags of mount(2) of mounts, given by their places in a process's mount namespace.

    Their options for access times are kept.
    """

    def change() -> None:
        for place, wanted in flags.items():
            value = ctypes.c_ulong(linux.MS_REMOUNT | linux.MS_BIND | wanted)
            linux.call("mount", place, None, os.fsencode(place), None, value, None)

    inside([f"/proc/{pid}/ns/mnt"], change)


def _read_names() -> list[str]:
    names = []
    for name in ("hostname", "domainname"):
        with open(f"/proc/sys/kernel/{name}", encoding="utf-8") as file:
            names.append(file.read().strip())
    return names


def _read_sysctls() -> dict[str, list[int]]:
    values = {}
    for field, name in IPC_SYSCTLS.items():
        with open(f"/proc/sys/{name}", encoding="ascii") as file:
            values[field] = [int(number) for number in file.read().split()]
    return values
