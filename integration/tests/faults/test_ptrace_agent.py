"""Processes that are held still from outside, and make system calls they know nothing of."""

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from grit_runtime.errors import CommandError
from grit_runtime.host import process, procfs
from grit_runtime.tasks import ptrace, ptrace_agent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(not ptrace.IS_SUPPORTED, reason="ptrace.py is for x86-64 alone")

SYS_GETPID, SYS_MADVISE, SYS_CLOSE, SYS_POLL = 39, 28, 3, 7
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


# Has a child, and says which signals it has handled.
PARENT = """
import os, signal, sys
seen = []
for number in (signal.SIGCONT, signal.SIGCHLD):
    signal.signal(number, lambda number, frame: seen.append(number))
child = os.fork()
if child == 0:
    signal.pause()
print(child, flush=True)
sys.stdin.readline()
print(seen, flush=True)
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

    def place(self) -> list[str]:
        """Where its first thread stands: its stack pointer and program counter."""
        return procfs.text(self.pid, "syscall").split()[-2:]

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
        with ptrace_agent.held([program.pid], process.new_token()) as holder:
            stood = program.place()
            os.kill(program.pid, signal.SIGUSR1)
            calls = [ptrace.Syscall(program.pid, SYS_GETPID, (0, 0, 0))]
            assert [holder.perform(calls * 3) for _ in range(20)] == [[program.pid] * 3] * 20
            failing = [ptrace.Syscall(program.pid, SYS_CLOSE, (12345, 0, 0))]
            assert holder.perform(failing) == [-errno.EBADF]
            assert program.place() == stood
        assert_goes_on(program)
        assert program.counts()[2] == 1


def test_two_processes_make_their_calls_together() -> None:
    with busy() as one, busy() as other:
        pids = [one.pid, other.pid]
        with ptrace_agent.held(pids, process.new_token()) as holder:
            assert (
                holder.perform([ptrace.Syscall(pid, SYS_GETPID, (0, 0, 0)) for pid in pids]) == pids
            )
        assert_goes_on(one)
        assert_goes_on(other)


def test_a_filter_of_system_calls_is_not_asked() -> None:
    with busy("filtered") as program:
        with ptrace_agent.held([program.pid], process.new_token()) as holder:
            advice = ptrace.Syscall(program.pid, SYS_MADVISE, (1, 1, 4))
            assert holder.perform([advice]) == [-errno.EINVAL]
        assert_goes_on(program)


def sleeper_32() -> bytes:
    """A 32-bit program that waits in pause(2) for ever. Spec: elf(5)."""
    address, headers_bytes = 0x08048000, 52 + 32
    code = bytes.fromhex("b81d000000 cd80 ebf7")  # mov eax, 29; int 0x80; jmp to the first
    size = headers_bytes + len(code)
    identity = b"\x7fELF\x01\x01\x01".ljust(16, b"\0")
    fields = (2, 3, 1, address + headers_bytes, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    load = struct.pack("<8I", 1, 0, address, address, size, size, 5, 0x1000)
    return identity + struct.pack("<HHIIIIIHHHHHH", *fields) + load + code


def test_a_32_bit_program_is_asked_for_nothing_and_goes_on(tmp_path: Path) -> None:
    program = tmp_path / "sleeper"
    program.write_bytes(sleeper_32())
    program.chmod(0o700)
    try:
        running = subprocess.Popen([program])
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        pytest.skip("this kernel runs no 32-bit programs")
    with running:
        assert procfs.is_32_bit(running.pid)
        with busy() as other:
            pids = [other.pid, running.pid]
            with (
                ptrace_agent.held(pids, process.new_token()) as holder,
                pytest.raises(CommandError, match=f"process {running.pid} runs 32-bit code"),
            ):
                holder.perform([ptrace.Syscall(pid, SYS_GETPID, ()) for pid in pids])
            assert_goes_on(other)  # whose call had begun
        running.terminate()
    assert running.returncode == -signal.SIGTERM  # and of nothing that came before


def test_a_process_that_is_stopped_is_told_and_one_that_is_gone_answers_nothing() -> None:
    with busy() as program:
        stop(program.pid)
        with (
            pytest.raises(CommandError, match="is stopped by a signal; continue it"),
            ptrace_agent.held([program.pid], process.new_token()),
        ):
            pass
        assert procfs.is_stopped(program.pid)
        os.kill(program.pid, signal.SIGCONT)
        assert_goes_on(program)
    with ptrace_agent.held([program.pid], process.new_token()) as holder:
        assert holder.perform([ptrace.Syscall(program.pid, SYS_GETPID, ())]) == [-errno.ESRCH]


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    wait_until_stopped(pid)


def wait_until_stopped(pid: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while not procfs.is_stopped(pid):
        assert time.monotonic() < end
        time.sleep(POLL_S)


def test_a_stopped_process_goes_on_and_none_of_its_handlers_knows() -> None:
    argv = [sys.executable, "-c", PARENT]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        pids = [parent.pid, int(parent.stdout.readline())]
        try:
            for pid in pids:
                stop(pid)
            with ptrace_agent.held_in_stop(pids) as holder:
                assert holder.perform([ptrace.Syscall(pid, SYS_GETPID, ()) for pid in pids]) == pids
            for pid in pids:
                wait_until_stopped(pid)
            with ptrace_agent.held_in_stop(pids) as holder:
                holder.go_on(pids)
            parent.stdin.write("\n")
            parent.stdin.flush()
            assert parent.stdout.readline() == "[]\n"
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)


def test_a_stopped_process_stays_stopped_when_who_holds_it_is_killed() -> None:
    with busy() as program:
        stop(program.pid)
        with ptrace_agent.held_in_stop([program.pid]):
            holder = procfs.tracer(program.pid)
            os.kill(holder, signal.SIGKILL)
        wait_until_stopped(program.pid)  # the kernel wakes it, to stop it again
        os.kill(program.pid, signal.SIGCONT)
        assert_goes_on(program)


def test_who_holds_a_process_may_be_killed() -> None:
    token = process.new_token()
    with busy() as program:
        code = "import os, signal, sys; from grit_runtime.tasks import ptrace_agent\n"
        code += f"with ptrace_agent.held([{program.pid}], {token!r}):\n"
        code += "    os.kill(os.getpid(), signal.SIGKILL)"
        done = subprocess.run([sys.executable, "-c", code], check=False)
        assert done.returncode == -signal.SIGKILL
        process.wait_gone(token, deadline_s=PATIENCE_S)
        assert_goes_on(program)


def test_a_process_whose_first_thread_has_ended_is_held_too() -> None:
    program = "import ctypes, threading, time\n"
    program += (
        "threading.Thread(target=lambda: [print('on', flush=True), time.sleep(1000)]).start()\n"
    )
    program += "ctypes.CDLL(None).syscall(60, 0)\n"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        running.stdout.readline()
        while not procfs.is_zombie(running.pid):
            time.sleep(POLL_S)
        with ptrace_agent.held([running.pid], process.new_token()) as holder:
            calls = [ptrace.Syscall(running.pid, SYS_GETPID, ())]
            assert holder.perform(calls) == [-errno.ESRCH]
        running.kill()


# One of its threads prints, and says of each signal that it has handled.
TWO = """
import os, signal, threading, time
say = lambda what: os.write(1, f"{what}\\n".encode())
signal.signal(signal.SIGUSR1, lambda *_: say("handled"))
def count():
    number = 0
    while True:
        number += 1
        say(number)
        time.sleep(0.01)
thread = threading.Thread(target=count, daemon=True)
thread.start()
say(f"tid {thread.native_id}")
while True:
    time.sleep(0.01)
    say("main")
"""


@contextmanager
def two_threads() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The program, and the thread of it that counts."""
    argv = [sys.executable, "-c", TWO]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as running:
        try:
            yield running, int(read_until(running, "tid").split()[1])
        finally:
            running.kill()


def read_until(running: subprocess.Popen[str], word: str) -> str:
    """The next line that the program prints and that begins with *word*."""
    assert running.stdout is not None
    for line in running.stdout:
        if line.startswith(word):
            return line
    raise AssertionError(f"it ended without {word}")


def lines_while_kept(running: subprocess.Popen[str], count: int) -> list[str]:
    """The next lines, after those that were printed before."""
    assert running.stdout is not None
    lines: list[str] = []
    while len(lines) < count:
        line = running.stdout.readline().strip()
        lines = [*lines, line] if line.isdigit() else []
    return lines


def test_one_thread_runs_alone_without_the_signals_of_its_process() -> None:
    with two_threads() as (running, tid):
        holder = ptrace_agent.keep([running.pid], [tid])
        os.kill(running.pid, signal.SIGUSR1)
        lines_while_kept(running, 20)
        holder.stop()
        assert procfs.moving_threads(running.pid) == []
        holder.run_alone([tid])
        lines_while_kept(running, 20)
        holder.release()
        read_until(running, "handled")
        read_until(running, "main")


def test_what_is_kept_stands_though_its_keeper_is_gone_until_somebody_lets_it_go() -> None:
    with two_threads() as (running, tid):
        code = "import os, signal; from grit_runtime.tasks import ptrace_agent\n"
        code += f"ptrace_agent.keep([{running.pid}], [{tid}]).stop()\n"
        code += "os.kill(os.getpid(), signal.SIGKILL)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
        lines_while_kept(running, 20)
        ptrace_agent.stop_alone([running.pid])
        assert procfs.moving_threads(running.pid) == []
        ptrace_agent.run_alone([running.pid])
        lines_while_kept(running, 20)
        assert ptrace_agent.debugger(running.pid) == 0
        ptrace_agent.let_go([running.pid])
        assert ptrace_agent.keeper(running.pid) == 0
        read_until(running, "main")


def test_nothing_is_kept_for_somebody_who_died_before_it_was_held() -> None:
    with busy() as program:
        task = ptrace_agent.Task((program.pid,), stays=True)
        asker = ptrace_agent._start(task, os.environ)  # noqa: SLF001  `keep` would wait
        asker.close()
        asker.wait()
        assert not ptrace_agent.keeper(program.pid)
        assert_goes_on(program)


def test_who_keeps_what_has_ended_ends() -> None:
    with two_threads() as (running, tid):
        ptrace_agent.keep([running.pid], [tid]).close()
        child = ptrace_agent.keeper(running.pid)
        running.kill()
        assert process.wait_exit(child, timeout_s=PATIENCE_S)


def test_a_process_that_a_signal_has_stopped_stays_so_after_it_was_kept() -> None:
    with two_threads() as (running, tid):
        stop(running.pid)
        holder = ptrace_agent.keep([running.pid], [tid])
        lines_while_kept(running, 20)
        holder.release()
        wait_until_stopped(running.pid)
        os.kill(running.pid, signal.SIGCONT)
        read_until(running, "main")


def test_a_process_of_somebody_elses_debugger_is_not_kept() -> None:
    with two_threads() as (running, _):
        with (
            ptrace_agent.held([running.pid], process.new_token()),
            pytest.raises(CommandError, match="ptrace"),
        ):
            ptrace_agent.keep([running.pid], [])
        read_until(running, "main")


# Asks for a call of 1.5 s in the name of a process, and dies during it.
ASK_AND_DIE = """
import os, signal, sys
from grit_runtime.tasks import ptrace, ptrace_agent
pid, tid, number = map(int, sys.argv[1:])
holder = ptrace_agent.keep([pid], [tid])
holder.stop()
signal.setitimer(signal.ITIMER_REAL, 0.3)
holder.perform([ptrace.Syscall(pid, number, (0, 0, 1500))])
"""


@contextmanager
def in_the_middle_of_a_call() -> Iterator[subprocess.Popen[str]]:
    """The program while its first thread makes a call for somebody who has died."""
    with two_threads() as (running, tid):
        argv = [sys.executable, "-c", ASK_AND_DIE, *map(str, (running.pid, tid, SYS_POLL))]
        assert subprocess.run(argv, check=False).returncode == -signal.SIGALRM
        assert running.pid in procfs.moving_threads(running.pid)
        yield running


def test_what_somebody_had_begun_can_be_waited_for() -> None:
    with in_the_middle_of_a_call() as running:
        ptrace_agent.finish([running.pid])
        assert running.pid not in procfs.moving_threads(running.pid)
        ptrace_agent.finish([running.pid])
        ptrace_agent.let_go([running.pid])
        read_until(running, "main")


def test_a_process_is_let_go_after_what_it_was_made_to_begin() -> None:
    with in_the_middle_of_a_call() as running:
        ptrace_agent.let_go([running.pid])
        read_until(running, "main")
        assert procfs.status(running.pid)["SigBlk"] == procfs.status(os.getpid())["SigBlk"]


# One of its threads counts, and starts another after a while, which counts too.
GROWING = """
import os, threading, time
say = lambda what: os.write(1, f"{what}\\n".encode())
def count(word):
    for number in range(10000):
        if number == 100 and not word:
            threading.Thread(target=count, args=("new ",), daemon=True).start()
        say(f"{word}{number}")
        time.sleep(0.01)
thread = threading.Thread(target=count, args=("",), daemon=True)
thread.start()
say(f"tid {thread.native_id}")
threading.Event().wait()
"""


def test_threads_that_one_alone_has_started_stand_with_it() -> None:
    argv = [sys.executable, "-c", GROWING]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as running:
        try:
            tid = int(read_until(running, "tid").split()[1])
            holder = ptrace_agent.keep([running.pid], [tid])
            read_until(running, "new")
            holder.stop()
            assert procfs.moving_threads(running.pid) == []
            holder.release()
            read_until(running, "new")
        finally:
            running.kill()


def test_that_who_holds_others_has_died_is_told() -> None:
    with two_threads() as (running, tid):
        holder = ptrace_agent.keep([running.pid], [tid])
        child = ptrace_agent.keeper(running.pid)
        os.kill(child, signal.SIGKILL)
        assert process.wait_exit(child, timeout_s=PATIENCE_S)
        with pytest.raises(CommandError, match="held others still has died"):
            holder.stop()
        holder.release()
        read_until(running, "main")


# Its first thread waits in the kernel, where no tracer stops it, for a child made by vfork.
WAITING = """
import ctypes, os, sys, threading, time
def count():
    number = 0
    while True:
        number += 1
        os.write(1, f"{number}\\n".encode())
        time.sleep(0.01)
thread = threading.Thread(target=count, daemon=True)
thread.start()
os.write(1, f"tid {thread.native_id}\\n".encode())
libc, actions = ctypes.CDLL(None), ctypes.create_string_buffer(256)
libc.posix_spawn_file_actions_init(actions)
libc.posix_spawn_file_actions_addopen(actions, 9, sys.argv[1].encode(), os.O_RDONLY, 0)
arguments = (ctypes.c_char_p * 2)(b"true", None)
libc.posix_spawn(None, b"/bin/true", actions, None, arguments, None)
os.write(1, b"main\\n")
threading.Event().wait()
"""


def test_one_thread_runs_alone_though_another_does_not_stop(tmp_path: Path) -> None:
    fifo = str(tmp_path / "fifo")  # the child waits for who writes into it
    os.mkfifo(fifo)
    argv = [sys.executable, "-c", WAITING, fifo]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as running:
        try:
            tid = int(read_until(running, "tid").split()[1])
            while not procfs.cannot_be_stopped(running.pid):
                time.sleep(POLL_S)
            holder = ptrace_agent.keep([running.pid], [tid], are_frozen=True)
            lines_while_kept(running, 100)
            with open(fifo, "w"):
                pass
            while procfs.moving_threads(running.pid) != [tid]:
                time.sleep(POLL_S)
            lines_while_kept(running, 20)
            holder.release()
            read_until(running, "main")
        finally:
            running.kill()


def test_a_process_that_is_killed_in_a_call_made_in_its_name_answers_nothing() -> None:
    with two_threads() as (running, tid):
        holder = ptrace_agent.keep([running.pid], [tid])
        holder.stop()
        killing = threading.Timer(0.3, running.kill)
        killing.start()
        calls = [ptrace.Syscall(running.pid, SYS_POLL, (0, 0, 60_000))]
        assert holder.perform(calls) == [-errno.ESRCH]
        killing.join()
        assert running.wait() == -signal.SIGKILL
        holder.release()
