"""What a pod's own namespaces hold: hostname and IPC limits, read from inside them."""

from __future__ import annotations

import ctypes
import json
import os
from contextlib import suppress
from typing import Any, NamedTuple

from grit_runtime.errors import CommandError
from grit_runtime.host import linux, process

_MS_REMOUNT = 32
_MS_BIND = 4096

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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


class Live(NamedTuple):
    """What the namespaces hold; empty for one that was not asked for."""

    node_name: bytes
    domain_name: bytes
    ipc_sysctls: dict[str, list[int]]  # by the fields of IPC_SYSCTLS


def read(uts_path: str | None, ipc_path: str | None) -> Live:
    """Host name and NIS domain name in a UTS namespace, and the limits of an IPC namespace."""

    def look() -> list[object]:
        names = _read_names() if uts_path else ["", ""]
        return [*names, _read_sysctls() if ipc_path else {}]

    node, domain, ipc_sysctls = inside([path for path in (uts_path, ipc_path) if path], look)
    return Live(node.encode(), domain.encode(), ipc_sysctls)


def inside(paths: Sequence[str], look: Callable[[], object]) -> Any:
    """What *look* returns in a child that has joined the namespaces: setns cannot be taken back.

    CommandError with the child's own reason if it fails.
    """
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            for path in paths:
                linux.setns(path)
            os.write(write_fd, json.dumps({"answer": look()}).encode())
        except Exception as error:  # noqa: BLE001  told by the parent
            os.write(write_fd, json.dumps({"error": str(error)}).encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    with open(read_fd, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    answer = json.loads(data)
    if "error" in answer:
        raise CommandError(f"in namespaces {' and '.join(paths)}: {answer['error']}")
    return answer["answer"]


def tasks(pid_path: str) -> dict[int, str]:
    """Names of the threads in the PID namespace at *pid_path*, by their numbers in it."""
    inode = os.stat(pid_path).st_ino
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):  # it has ended
            if os.stat(f"/proc/{pid}/ns/pid").st_ino == inode:
                for tid in os.listdir(f"/proc/{pid}/task"):
                    status = process.proc_text(int(tid), "status")
                    fields = dict(line.partition(":\t")[::2] for line in status.splitlines())
                    found[int(fields["NSpid"].split()[-1])] = fields["Name"]
    return found


def make_root_readonly(pid: int) -> None:
    """Make the root of a process's mount namespace read-only, if it is not."""

    def remount() -> None:
        flags = os.statvfs("/").f_flag
        if not flags & os.ST_RDONLY:
            kept = flags & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC)
            wanted = ctypes.c_ulong(_MS_REMOUNT | _MS_BIND | os.ST_RDONLY | kept)
            linux.call("mount", "/", None, b"/", None, wanted, None)

    inside([f"/proc/{pid}/ns/mnt"], remount)


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
