"""Processes that are held still from outside, and make system calls they know nothing of."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest

from grit_runtime.errors import CommandError
from grit_runtime.host import process, ptrace, still

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not ptrace.IS_SUPPORTED, reason="ptrace.py is for x86-64 alone")

SYS_GETPID, SYS_MADVISE, SYS_CLOSE = 39, 28, 3
PATIENCE_S = 20
POLL_S = 0.005

# A thread that computes, ten that sleep, and a handler that counts signals; says of a sleep that
# ends early. With an argument the kernel kills it for any madvise.
PROGRAM = """
import ctypes, signal, sys, threading, time
spun, slept, signals = [0], [0], [0]
def spin():
    while True:
        spun[0] += 1
def sleep():
    while True:
        begin = time.monotonic()
        time.sleep(0.2)
        slept[0] += 1
        if time.monotonic() - begin < 0.199:
            print("woken early", flush=True)
for work in (spin, *[sleep] * 10):
    threading.Thread(target=work, daemon=True).start()
signal.signal(signal.SIGUSR1, lambda *_: signals.__setitem__(0, signals[0] + 1))
if len(sys.argv) > 1:
    code = (ctypes.c_uint64 * 4)(0x20, 0x1C01000015, 0x8000000000000006, 0x7FFF000000000006)
    program = (ctypes.c_uint64 * 2)(4, ctypes.addressof(code))
    libc = ctypes.CDLL(None)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.syscall(317, 1, 0, program) == 0
print("ready", flush=True)
for line in sys.stdin:
    print(spun[0], slept[0], signals[0], flush=True)
"""


class Busy:
    """The program, while it runs."""

    def __init__(self, running: subprocess.Popen[str]) -> None:
        self._running = running
        self.pid = running.pid
        assert self._line() == "ready"

    def counts(self) -> list[int]:
        assert self._running.stdin is not None
        self._running.stdin.write("\n")
        self._running.stdin.flush()
        return [int(word) for word in self._line().split()]

    def processor_ticks(self) -> list[str]:
        return process.proc_text(self.pid, "stat").rpartition(")")[2].split()[11:13]

    def _line(self) -> str:
        assert self._running.stdout is not None
        return self._running.stdout.readline().strip()


@contextmanager
def busy(*arguments: str) -> Iterator[Busy]:
    argv = [sys.executable, "-c", PROGRAM, *arguments]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            yield Busy(running)
        finally:
            running.kill()


def assert_goes_on(program: Busy) -> None:
    """Everything in it moves, and no sleep was cut short."""
    before = program.counts()
    end = time.monotonic() + PATIENCE_S
    while True:
        after = program.counts()
        if after[0] > before[0] and after[1] >= before[1] + 20:
            return
        assert time.monotonic() < end
        time.sleep(POLL_S)


def test_a_process_stands_still_and_goes_on_where_it_was() -> None:
    with busy() as program:
        with still.held([program.pid], process.new_token()) as perform:
            stood = program.processor_ticks()
            os.kill(program.pid, signal.SIGUSR1)
            calls = [ptrace.Syscall(program.pid, SYS_GETPID, (0, 0, 0))]
            assert [perform(calls) for _ in range(20)] == [[program.pid]] * 20
            failing = [ptrace.Syscall(program.pid, SYS_CLOSE, (12345, 0, 0))]
            assert perform(failing) == [-errno.EBADF]
            assert program.processor_ticks() == stood
        assert_goes_on(program)
        assert program.counts()[2] == 1


def test_two_processes_make_their_calls_together() -> None:
    with busy() as one, busy() as other:
        pids = [one.pid, other.pid]
        with still.held(pids, process.new_token()) as perform:
            assert perform([ptrace.Syscall(pid, SYS_GETPID, (0, 0, 0)) for pid in pids]) == pids
        assert_goes_on(one)
        assert_goes_on(other)


def test_a_filter_of_system_calls_is_not_asked() -> None:
    with busy("filtered") as program:
        with still.held([program.pid], process.new_token()) as perform:
            advice = ptrace.Syscall(program.pid, SYS_MADVISE, (1, 1, 4))
            assert perform([advice]) == [-errno.EINVAL]
        assert_goes_on(program)


def test_a_process_that_is_stopped_or_gone_is_told() -> None:
    with busy() as program:
        os.kill(program.pid, signal.SIGSTOP)
        while not process.is_stopped(program.pid):
            time.sleep(POLL_S)
        with (
            pytest.raises(CommandError, match="is stopped by a signal; continue it"),
            still.held([program.pid], process.new_token()),
        ):
            pass
        assert process.is_stopped(program.pid)
        os.kill(program.pid, signal.SIGCONT)
        assert_goes_on(program)
    with (
        pytest.raises(CommandError, match="No such file"),
        still.held([program.pid], process.new_token()),
    ):
        pass


def test_who_holds_a_process_may_be_killed() -> None:
    token = process.new_token()
    with busy() as program:
        code = "import os, signal, sys; from grit_runtime.host import still\n"
        code += f"with still.held([{program.pid}], {token!r}): os.kill(os.getpid(), signal.SIGKILL)"
        done = subprocess.run([sys.executable, "-c", code], check=False)
        assert done.returncode == -signal.SIGKILL
        process.wait_gone(token, deadline_s=PATIENCE_S)
        assert_goes_on(program)
