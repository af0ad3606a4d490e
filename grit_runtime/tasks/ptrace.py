"""Requests of ptrace, and system calls made in the name of stopped processes, on x86-64 alone.

Spec: ptrace(2); struct user_regs_struct of sys/user.h. All of it must happen in one thread, which
the kernel takes for the tracer.
"""

from __future__ import annotations

import ctypes
import errno
import math
import os
import signal
import struct
import time
from collections import deque
from contextlib import suppress
from functools import cache

from grit_runtime.errors import CommandError
from grit_runtime.host import linux, procfs
from grit_runtime.model.memory_range import MemoryRange
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

IS_SUPPORTED = os.uname().machine == "x86_64"

CONT, _GETREGS, _SETREGS, DETACH, _SYSCALL = 7, 12, 13, 17, 24
SETOPTIONS, SEIZE, INTERRUPT = 0x4200, 0x4206, 0x4207
_PEEKSIGINFO, _GETSIGMASK, _SETSIGMASK, _GET_RSEQ = 0x4209, 0x420A, 0x420B, 0x420F
_EVENT_STOP = 128
WALL = 0x40000000
ALL_SIGNALS = 2**64 - 1
_SYSCALL_STOP = signal.SIGTRAP | 0x80

_USER_CS = 0x33  # the segment of 64-bit code: arch/x86/include/asm/segment.h
_SYSCALL_INSTRUCTION = b"\x0f\x05"
_SIGSET_BYTES = 8
_SIGINFO_BYTES = 128
_PEEK_SHARED = 1
_PENDING_LIMIT = 64
_CLD_STOPPED, _CLD_CONTINUED = 5, 6
_RSEQ_CS_OFFSET = 8  # of struct rseq, include/uapi/linux/rseq.h
_POLL_S = 0.01


class _Registers(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_ulong)
        for name in (
            *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8"),
            *("rax", "rcx", "rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss"),
            *("fs_base", "gs_base", "ds", "es", "fs", "gs"),
        )
    )


class _PeekArguments(ctypes.Structure):
    _fields_ = (("off", ctypes.c_uint64), ("flags", ctypes.c_uint32), ("nr", ctypes.c_int32))


class _RseqConfiguration(ctypes.Structure):
    _fields_ = (
        ("rseq_abi_pointer", ctypes.c_uint64),
        ("rseq_abi_size", ctypes.c_uint32),
        ("signature", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
    )


class _Kept(NamedTuple):
    """The state of a thread before a call made in its name, to be restored after it."""

    registers: _Registers
    mask: ctypes.c_uint64
    rseq_place: int  # 0 outside of a restartable sequence
    rseq: bytes


class Syscall(NamedTuple):
    """A system call for one thread to make, with at most six arguments."""

    pid: int
    number: int
    arguments: tuple[int, ...]


def go_on(pids: Sequence[int]) -> None:
    """Continue held processes that SIGSTOP has stopped: they run once they are released.

    None of their handlers sees the SIGCONT, nor the SIGCHLD that a parent gets when a child stops
    or continues. Spec: linux kernel/signal.c prepare_signal, do_signal_stop, get_signal.
    """
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    # A parent gets its SIGCHLD when a child takes its SIGCONT, so all take their SIGCONT first.
    for number in (signal.SIGCONT, signal.SIGCHLD):
        for pid in pids:
            with suppress(ProcessLookupError):
                if _is_pending_for_stop(pid, number):
                    _take_signal(pid, number)


def perform(calls: Sequence[Syscall]) -> list[int]:
    """Make calls in stopped threads, all at the same time, those of one thread in turn.

    Returns what the kernel returned: a negative errno for a call that failed, ESRCH for a process
    that has ended. Blocks until all have returned, however long they take. CommandError for a
    process that cannot make one, when those that were begun have ended.
    """
    results = [-errno.ESRCH] * len(calls)
    left: dict[int, deque[tuple[int, Syscall]]] = {}
    for at, call in enumerate(calls):
        left.setdefault(call.pid, deque()).append((at, call))
    places: dict[int, int] = {}
    error = None
    while left and not error:
        turn = {pid: own.popleft() for pid, own in left.items()}
        left = {pid: own for pid, own in left.items() if own}
        begun: dict[int, _Kept] = {}
        for pid, (_, call) in turn.items():
            try:
                begun[pid] = _begin(call, places)
            except (ProcessLookupError, FileNotFoundError):
                pass  # it has ended
            except (CommandError, OSError) as failed:
                error = failed
                break
        for pid, kept in begun.items():
            with suppress(ProcessLookupError):
                results[turn[pid][0]] = _end(turn[pid][1], kept)
    if error:
        raise error
    return results


def _begin(call: Syscall, places: dict[int, int]) -> _Kept:
    """Begin the call; the state to be restored after it.

    *places* has the syscall instructions of processes that have made a call before.
    """
    kept = _Kept(_registers(call.pid), signal_mask(call.pid), *_rseq(call.pid))
    if kept.registers.cs != _USER_CS:
        raise CommandError(f"process {call.pid} runs 32-bit code: no call is made in its name")
    if call.pid not in places:
        places[call.pid] = _vdso(call.pid).start + _syscall_offset()
    set_signal_mask(call.pid, ALL_SIGNALS)
    changed = _Registers.from_buffer_copy(kept.registers)
    changed.rip = places[call.pid]
    changed.rax, changed.orig_rax = call.number, 2**64 - 1  # no call to restart
    arguments = (*call.arguments, *(0,) * (6 - len(call.arguments)))
    for register, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), arguments, strict=True):
        setattr(changed, register, value)
    request(_SETREGS, call.pid, data=ctypes.addressof(changed))
    request(_SYSCALL, call.pid)
    wait(call.pid, _SYSCALL_STOP)
    request(_SYSCALL, call.pid)
    return kept


def _end(call: Syscall, kept: _Kept) -> int:
    wait(call.pid, _SYSCALL_STOP)
    result = ctypes.c_long(_registers(call.pid).rax).value
    request(_SETREGS, call.pid, data=ctypes.addressof(kept.registers))
    set_signal_mask(call.pid, kept.mask.value)
    if kept.rseq_place:
        # The kernel cleared rseq_cs when it saw the thread outside of the sequence; with it written
        # back, the kernel aborts the sequence.
        write_memory(call.pid, kept.rseq_place, kept.rseq)
    # From the stop at a call's end a process would go on without checking whether the call that was
    # interrupted has to be restarted; from this stop it checks.
    request(INTERRUPT, call.pid)
    request(CONT, call.pid)
    wait(call.pid, None)
    return result


def _take_signal(pid: int, number: int) -> None:
    """Have a process's first thread take a pending signal, and discard it."""
    mask = signal_mask(pid)
    set_signal_mask(pid, ALL_SIGNALS & ~(1 << (number - 1)))
    request(CONT, pid)
    wait(pid, number)
    set_signal_mask(pid, mask.value)


def _is_pending_for_stop(pid: int, number: int) -> bool:
    """Whether the pending signal of this number only reports a stop or a continuation.

    The kernel keeps one signal of a number: if a child's death came first, it reports that.
    """
    if any(pending == number for pending, _ in _pending(pid, 0)):
        return False  # a signal sent to the thread itself would be taken first
    codes = [code for pending, code in _pending(pid, _PEEK_SHARED) if pending == number]
    return bool(codes) and (number == signal.SIGCONT or codes[0] in {_CLD_STOPPED, _CLD_CONTINUED})


def _pending(pid: int, flags: int) -> list[tuple[int, int]]:
    """Number and code of the signals in a queue of a thread. Spec: ptrace(2) PEEKSIGINFO."""
    arguments = _PeekArguments(0, flags, _PENDING_LIMIT)
    buffer = ctypes.create_string_buffer(_SIGINFO_BYTES * _PENDING_LIMIT)
    count = linux.result(
        "ptrace",
        f"thread {pid}",
        ctypes.c_long(_PEEKSIGINFO),
        ctypes.c_long(pid),
        ctypes.byref(arguments),
        buffer,
    )
    signals = [struct.unpack_from("iii", buffer, at * _SIGINFO_BYTES) for at in range(count)]
    return [(number, code) for number, _, code in signals]


def signal_mask(tid: int) -> ctypes.c_uint64:
    mask = ctypes.c_uint64()
    request(_GETSIGMASK, tid, _SIGSET_BYTES, ctypes.addressof(mask))
    return mask


def set_signal_mask(tid: int, value: int) -> None:
    mask = ctypes.c_uint64(value)
    request(_SETSIGMASK, tid, _SIGSET_BYTES, ctypes.addressof(mask))


def _rseq(tid: int) -> tuple[int, bytes]:
    """The address of a thread's rseq_cs field, and its content; 0 outside of a sequence.

    Spec: rseq(2), ptrace(2) PTRACE_GET_RSEQ_CONFIGURATION.
    """
    configuration = _RseqConfiguration()
    try:
        linux.result(
            "ptrace",
            f"thread {tid}",
            ctypes.c_long(_GET_RSEQ),
            ctypes.c_long(tid),
            ctypes.c_void_p(ctypes.sizeof(configuration)),
            ctypes.byref(configuration),
        )
    except OSError as error:
        if error.errno == errno.ESRCH:
            raise
        return 0, b""  # a kernel without the request
    if not configuration.rseq_abi_pointer:
        return 0, b""
    place = configuration.rseq_abi_pointer + _RSEQ_CS_OFFSET
    with open(f"/proc/{tid}/mem", "rb", buffering=0) as memory:
        memory.seek(place)
        value = memory.read(8)
    return (place, value) if any(value) else (0, b"")


def write_memory(tid: int, address: int, data: bytes) -> None:
    """Write into the memory of a stopped thread."""
    with open(f"/proc/{tid}/mem", "r+b", buffering=0) as memory:
        memory.seek(address)
        memory.write(data)


def wait(tid: int, stop: int | None, *, deadline_s: float = math.inf) -> None:
    """Wait for the thread's next *stop*: a signal or a call, None for a ptrace event.

    Signals that come before it are delivered. ProcessLookupError if it ends: the end of a process's
    first thread is told only when all others were waited for, so it is looked for too. A caller
    that blocks SIGCHLD, which announces stops, hears of them at once.
    """
    end = time.monotonic() + deadline_s
    while True:
        stopped_tid, status = os.waitpid(tid, WALL | os.WNOHANG)
        if not stopped_tid:
            if procfs.is_zombie(tid):
                raise ProcessLookupError(f"thread {tid} has ended")
            if time.monotonic() > end:
                raise CommandError(f"thread {tid} did not stop in {deadline_s:.0f} s")
            signal.sigtimedwait({signal.SIGCHLD}, _POLL_S)
            continue
        if not os.WIFSTOPPED(status):
            raise ProcessLookupError(f"thread {tid} has ended")
        number = os.WSTOPSIG(status)
        if number == stop or (stop is None and is_event(status)):
            return
        resume = _SYSCALL if stop == _SYSCALL_STOP else CONT
        request(resume, tid, data=0 if is_event(status) else number)


def is_event(status: int) -> bool:
    """Whether a stop is one of ptrace's own or of the whole process, and no signal's."""
    return status >> 16 == _EVENT_STOP


def _registers(tid: int) -> _Registers:
    registers = _Registers()
    request(_GETREGS, tid, data=ctypes.addressof(registers))
    return registers


def _vdso(tid: int) -> MemoryRange:
    """The mapping of the vDSO in the address space of a thread."""
    with open(f"/proc/{tid}/maps", "rb") as file:
        line = next((line for line in file if line.endswith(b"[vdso]\n")), None)
    if line is None:
        raise CommandError(f"thread {tid} has no vDSO: no call is made in its name")
    return MemoryRange(*(int(number, 16) for number in line.split()[0].split(b"-")))


@cache
def _syscall_offset() -> int:
    """The offset of a syscall instruction in the vDSO, the same for all processes of a kernel."""
    code = _vdso(os.getpid())
    with open("/proc/self/mem", "rb") as memory:
        memory.seek(code.start)
        return memory.read(code.size_bytes).index(_SYSCALL_INSTRUCTION)


def request(request: int, tid: int, address: int = 0, data: int = 0) -> None:
    places = (ctypes.c_void_p(address), ctypes.c_void_p(data))
    linux.call("ptrace", f"thread {tid}", ctypes.c_long(request), ctypes.c_long(tid), *places)
