"""Processes held still from outside, and system calls made in their name. x86-64 alone.

Spec: ptrace(2); struct user_regs_struct of sys/user.h. All of it must happen in one thread, which
the kernel takes for the tracer.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import platform
import signal
import time
from contextlib import contextmanager, suppress
from typing import NamedTuple

from grit_runtime.errors import CommandError
from grit_runtime.host import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

IS_SUPPORTED = platform.machine() == "x86_64"

_CONT, _GETREGS, _SETREGS, _DETACH, _SYSCALL = 7, 12, 13, 17, 24
_SEIZE, _INTERRUPT, _GETSIGMASK, _SETSIGMASK = 0x4206, 0x4207, 0x420A, 0x420B
_O_TRACESYSGOOD, _O_SUSPEND_SECCOMP = 1, 1 << 21
_EVENT_STOP = 128
_WALL = 0x40000000
_SYSCALL_STOP = signal.SIGTRAP | 0x80

_SYSCALL_INSTRUCTION = b"\x0f\x05"
_SIGSET_BYTES = 8
_STOP_DEADLINE_S = 10.0
_POLL_S = 0.0005


class _Registers(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_ulong)
        for name in (
            *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8"),
            *("rax", "rcx", "rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss"),
            *("fs_base", "gs_base", "ds", "es", "fs", "gs"),
        )
    )


class Syscall(NamedTuple):
    """A system call for one process to make."""

    pid: int
    number: int
    arguments: tuple[int, int, int]


@contextmanager
def stopped(pids: Sequence[int]) -> Iterator[None]:
    """Hold all threads of the processes still, for as long as the block lasts.

    None of them runs an instruction of its own meanwhile; they go on where they were, also when
    this process dies. CommandError for a thread that does not stop.
    """
    seized: list[int] = []
    try:
        for pid in pids:
            _seize_process(pid, seized)
        yield
    finally:
        for tid in seized:
            with suppress(ProcessLookupError):
                _ptrace(_DETACH, tid)


def perform(calls: Sequence[Syscall]) -> list[int]:
    """Have stopped processes make a call each, all at the same time; what the kernel returned.

    That is a negative errno for a call that failed, ESRCH of a process that was killed. Blocks
    until all have returned, however long they take.
    """
    begun: dict[Syscall, tuple[_Registers, ctypes.c_uint64]] = {}
    results = dict.fromkeys(calls, -errno.ESRCH)
    for call in calls:
        with suppress(ProcessLookupError):
            begun[call] = _begin(call)
    for call, kept in begun.items():
        with suppress(ProcessLookupError):
            results[call] = _end(call, *kept)
    return list(results.values())


def _begin(call: Syscall) -> tuple[_Registers, ctypes.c_uint64]:
    """Let the call begin; the registers and the signal mask to be put back."""
    registers, mask = _registers(call.pid), ctypes.c_uint64()
    _ptrace(_GETSIGMASK, call.pid, _SIGSET_BYTES, ctypes.addressof(mask))
    every = ctypes.c_uint64(2**64 - 1)
    _ptrace(_SETSIGMASK, call.pid, _SIGSET_BYTES, ctypes.addressof(every))
    changed = _Registers.from_buffer_copy(registers)
    changed.rip = _syscall_instruction(call.pid)
    changed.rax, changed.orig_rax = call.number, 2**64 - 1  # no call that would be made again
    changed.rdi, changed.rsi, changed.rdx = call.arguments
    _ptrace(_SETREGS, call.pid, data=ctypes.addressof(changed))
    _ptrace(_SYSCALL, call.pid)
    _wait(call.pid, _SYSCALL_STOP)
    _ptrace(_SYSCALL, call.pid)
    return registers, mask


def _end(call: Syscall, registers: _Registers, mask: ctypes.c_uint64) -> int:
    _wait(call.pid, _SYSCALL_STOP)
    result = ctypes.c_long(_registers(call.pid).rax).value
    _ptrace(_SETREGS, call.pid, data=ctypes.addressof(registers))
    _ptrace(_SETSIGMASK, call.pid, _SIGSET_BYTES, ctypes.addressof(mask))
    # From the stop at a call's end a process would go on without looking whether the call that we
    # interrupted has to be made again; from this one it does.
    _ptrace(_INTERRUPT, call.pid)
    _ptrace(_CONT, call.pid)
    _wait(call.pid, signal.SIGTRAP)
    return result


def _seize_process(pid: int, seized: list[int]) -> None:
    """Stop every thread, also those that others start while they are not stopped yet."""
    while new := [tid for tid in map(int, os.listdir(f"/proc/{pid}/task")) if tid not in seized]:
        for tid in new:
            with suppress(ProcessLookupError):  # it has ended
                _ptrace(_SEIZE, tid, data=_O_TRACESYSGOOD | _O_SUSPEND_SECCOMP)
                seized.append(tid)
                _ptrace(_INTERRUPT, tid)
                _wait(tid, signal.SIGTRAP, deadline_s=_STOP_DEADLINE_S)


def _wait(tid: int, stop: int, *, deadline_s: float = math.inf) -> None:
    """Wait for the thread's next *stop*; signals that come before it are delivered."""
    end = time.monotonic() + deadline_s
    while True:
        found, status = os.waitpid(tid, _WALL | os.WNOHANG)
        if not found:
            if time.monotonic() > end:
                raise CommandError(f"thread {tid} did not stop in {deadline_s:.0f} s")
            time.sleep(_POLL_S)
        elif not os.WIFSTOPPED(status):
            raise ProcessLookupError(f"thread {tid} has ended")
        elif os.WSTOPSIG(status) == stop and (stop == _SYSCALL_STOP or _is_event(status)):
            return
        elif _is_event(status):
            raise CommandError(f"thread {tid} is stopped by a signal; continue it (SIGCONT) first")
        else:
            _ptrace(_CONT, tid, data=os.WSTOPSIG(status))


def _is_event(status: int) -> bool:
    return status >> 16 == _EVENT_STOP


def _registers(tid: int) -> _Registers:
    registers = _Registers()
    _ptrace(_GETREGS, tid, data=ctypes.addressof(registers))
    return registers


def _syscall_instruction(pid: int) -> int:
    """The address of one in the page of code that the kernel gives to each process."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape") as file:
        start, end = next(
            (int(number, 16) for number in line.split()[0].split("-"))
            for line in file
            if line.endswith("[vdso]\n")
        )
    with open(f"/proc/{pid}/mem", "rb") as memory:
        memory.seek(start)
        code = memory.read(end - start)
    return start + code.index(_SYSCALL_INSTRUCTION)


def _ptrace(request: int, tid: int, address: int = 0, data: int = 0) -> None:
    places = (ctypes.c_void_p(address), ctypes.c_void_p(data))
    linux.call("ptrace", f"thread {tid}", ctypes.c_long(request), ctypes.c_long(tid), *places)
