"""What a pod's own namespaces hold: hostname and IPC limits, read from inside them."""

import json
import os
from collections.abc import Callable
from typing import Any

from grit_runtime.errors import CommandError
from grit_runtime.host import linux

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


def host_names(uts_path: str) -> tuple[bytes, bytes]:
    """The host name and the NIS domain name in the UTS namespace at *uts_path*."""
    node, domain = _inside(uts_path, _read_names)
    return node.encode(), domain.encode()


def ipc_sysctls(ipc_path: str) -> dict[str, list[int]]:
    """The IPC limits in the namespace at *ipc_path*: the numbers of each field of IPC_SYSCTLS."""
    answer: dict[str, list[int]] = _inside(ipc_path, _read_sysctls)
    return answer


def _inside(namespace_path: str, read: Callable[[], object]) -> Any:
    """What *read* returns in a child that joined the namespace: setns cannot be taken back."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            linux.setns(namespace_path)
            os.write(write_fd, json.dumps(read()).encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    with open(read_fd, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    if not data:
        raise CommandError(f"namespace {namespace_path} cannot be joined")
    return json.loads(data)


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
