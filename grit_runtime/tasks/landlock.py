"""Finding processes that are in a Landlock domain, which the kernel does not show.

A process in a domain may not inspect one outside of it, whoever owns it. So a bystander process of
the same user, without any capability, is started, which every other process of that user may
inspect: a process that may not is in a domain.

Spec: landlock(7), kcmp(2), ptrace(2) "Ptrace access mode checking"; linux security/landlock/task.c
hook_ptrace_access_check, kernel/kcmp.c.
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import contextmanager

from grit_runtime.errors import CommandError
from grit_runtime.host import linux, procfs
from grit_runtime.host.procfs import namespaces, security_label
from grit_runtime.tasks.ptrace import Syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from grit_runtime.tasks.ptrace_agent import Holder

_SYS_KCMP = 312  # on x86-64
_KCMP_VM = 1
_PR_SET_DUMPABLE = 4
_CAPABILITY_VERSION_3 = 0x20080522
_UNLABELLED = ("", "unconfined")


def confined(pids: Sequence[int], holder: Holder) -> list[int]:
    """Those of the stopped processes *pids* that are in a Landlock domain.

    A process with a label of another LSM is left out: that LSM may be what forbids it to inspect.
    """
    in_domain = []
    users: dict[tuple[int, int, str, str], list[int]] = {}
    for pid in pids:
        if security_label(pid) in _UNLABELLED:
            users.setdefault(_user(pid), []).append(pid)
    for (uid, gid, pid_namespace, user_namespace), several in users.items():
        if user_namespace != os.readlink("/proc/self/ns/user") or not pid_namespace:
            continue
        with _bystander(several[0], uid, gid) as number:
            look = (number, number, _KCMP_VM)
            results = holder.perform([Syscall(pid, _SYS_KCMP, look) for pid in several])
        in_domain += [
            pid for pid, result in zip(several, results, strict=True) if result == -errno.EPERM
        ]
    return in_domain


def _user(pid: int) -> tuple[int, int, str, str]:
    """The real ids of a process, by which it may inspect others, and its namespaces."""
    ids = dict(line.partition(":")[::2] for line in procfs.text(pid, "status").splitlines())
    uid, gid = (int(ids.get(name, "0").split()[0]) for name in ("Uid", "Gid"))
    own = namespaces(pid)
    return uid, gid, own.get("pid", ""), own.get("user", "")


@contextmanager
def _bystander(pid: int, uid: int, gid: int) -> Iterator[int]:
    """Run a bystander during the block; its pid in the pid namespace of *pid*.

    It ends when this process does. Its parent is not a process of the container, which would have
    to wait for it.
    """
    number_fd, told_fd = os.pipe()
    until_fd, held_fd = os.pipe()
    between = os.fork()
    if between == 0:
        try:
            os.close(held_fd)
            linux.setns(f"/proc/{pid}/ns/pid")
            child = os.fork()
            if child == 0:
                _become(uid, gid)
                os.write(told_fd, str(os.getpid()).encode())
                os.read(until_fd, 1)
            else:
                os.waitpid(child, 0)
        finally:
            os._exit(0)
    for fd in (told_fd, until_fd):
        os.close(fd)
    try:
        with open(number_fd, "rb", buffering=0) as file:
            number = file.read(16)
        if not number:
            raise CommandError(f"no process could be started beside process {pid}")
        yield int(number)
    finally:
        os.close(held_fd)
        os.waitpid(between, 0)


def _become(uid: int, gid: int) -> None:
    """Become a process that any process of that user may inspect."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    linux.call("capset", "capabilities", header, (ctypes.c_uint32 * 6)())
    linux.call("prctl", "PR_SET_DUMPABLE", _PR_SET_DUMPABLE, 1, 0, 0, 0)
