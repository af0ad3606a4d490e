"""Stopping processes, and making system calls in their name, from a separate process.

A tracer that is killed during such a call leaves its target with registers that are not its own. So
a child does it that no signal to this process reaches; when this process is gone, the child
finishes what it has begun. Then it releases the processes and ends, or keeps them until it is told.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from contextlib import contextmanager, suppress

from grit_runtime.errors import CommandError, GritError
from grit_runtime.host import process, procfs
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.startup.named import NamedTuple
from grit_runtime.tasks import ptrace, ptrace_hold
from grit_runtime.tasks.ptrace import Syscall
from grit_runtime.tasks.ptrace_hold import STOP_DEADLINE_S, Hold

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any

    Perform = Callable[[Sequence[Syscall]], list[int]]

# How often the threads that run alone are looked at: a signal of their own waits for that.
_ATTEND_EVERY_MS = 10
_REQUEST_LIMIT_BYTES = 1 << 20
_END_DEADLINE_S = 10.0
_FINISH_DEADLINE_S = 60.0

_REQUESTS_FD, _ANSWERS_FD = 0, 1  # of the child

# By these others ask a child that stays to stop its threads that run alone, and to let them run.
_STOP, _RUN = signal.SIGUSR1, signal.SIGUSR2


class Task(NamedTuple):
    """What a child is to do: hold *pids*, but let the threads *alone* run.

    One that *stays* keeps them when nobody asks it for anything any more, until SIGTERM or their
    end. If they *are_frozen* it waits for none of them.
    """

    pids: tuple[int, ...]
    alone: tuple[int, ...] = ()
    stays: bool = False
    are_frozen: bool = False


class Holder:
    """The child that stops processes, and takes requests."""

    def __init__(self, pid: int, requests_fd: int, answers_fd: int) -> None:
        self._pid = pid
        self._requests = open(requests_fd, "wb", buffering=0)  # noqa: SIM115  `close` closes it
        self._answers = open(answers_fd, "rb")  # noqa: SIM115
        self._unheard = 2  # what the child says by itself: that it has seized, and all stand

    def seize(self) -> None:
        """Wait until every thread stops before it runs its next instruction, if it is frozen."""
        self._hear(left=1)

    def settle(self) -> None:
        """Wait until all threads stand, if they are not frozen."""
        self._hear(left=0)

    def stand(self) -> None:
        """Wait until all threads stand that were frozen, and are thawed."""
        self._ask("settle", None)

    def _hear(self, *, left: int) -> None:
        while self._unheard > left:
            self._answer()
            self._unheard -= 1

    def perform(self, calls: Sequence[Syscall]) -> list[int]:
        """As `ptrace.perform`."""
        results: list[int] = self._ask("perform", calls) if calls else []
        return results

    def go_on(self, pids: Sequence[int]) -> None:
        """As `ptrace.go_on`."""
        self._ask("go_on", pids)

    def run_alone(self, tids: Iterable[int]) -> None:
        """As `Hold.run_alone`."""
        self._ask("run_alone", list(tids))

    def stop(self) -> None:
        """As `Hold.stop`."""
        self._ask("stop", None)

    def killed(self) -> dict[int, int]:
        """The signals that have killed held processes, by pid."""
        return dict(self._ask("killed", None))

    def release(self) -> None:
        """Let the processes go on, and wait for the child's end."""
        os.kill(self._pid, signal.SIGTERM)
        self.close()
        self.wait()

    def close(self) -> None:
        """Ask for nothing more."""
        self._requests.close()
        self._answers.close()

    def wait(self) -> None:
        os.waitpid(self._pid, 0)

    def _ask(self, verb: str, argument: object) -> Any:
        self.settle()
        with suppress(BrokenPipeError):  # `_answer` tells it
            self._requests.write(json.dumps([verb, argument]).encode() + b"\n")
        return self._answer()

    def _answer(self) -> Any:
        line = self._answers.readline()
        if not line:
            raise CommandError("the process that held others still has died; see the kernel's log")
        answer = json.loads(line)
        if isinstance(answer, dict):
            raise CommandError(answer["error"])
        return answer


@contextmanager
def held(pids: Sequence[int], token: str) -> Iterator[Holder]:
    """Stop all threads of the processes for as long as the block lasts.

    They go on where they were, also when this process dies. The child carries *token*. Blocks until
    all have stopped; CommandError for a process that a signal has stopped.
    """
    ptrace_hold.refuse_stopped(pids)
    with _closing(_start(Task(tuple(pids)), {**os.environ, process.OPERATION: token})) as holder:
        yield holder


@contextmanager
def held_in_stop(pids: Sequence[int]) -> Iterator[Holder]:
    """Hold processes that SIGSTOP has stopped, or is about to stop.

    They stay stopped by it afterwards, also when this process dies, except those given to `go_on`.
    Only for a process of one thread: the child is a fork of it, which costs less than a new one.
    """
    request_fd, to_child, from_child, answer_fd = _pipes()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            os.dup2(request_fd, _REQUESTS_FD)
            os.dup2(answer_fd, _ANSWERS_FD)
            os.closerange(2, os.sysconf("SC_OPEN_MAX"))
            _serve(Task(tuple(pids)), Hold(in_stop=True), [])
        finally:
            os._exit(0)
    os.close(request_fd)
    os.close(answer_fd)
    with _closing(Holder(child, to_child, from_child)) as holder:
        yield holder


def keep(pids: Sequence[int], alone: Sequence[int], *, are_frozen: bool = False) -> Holder:
    """Hold the processes but for the threads *alone* until `let_go`, whatever becomes of us.

    Blocks until all have stopped, or, if they *are_frozen*, until they would when they are thawed.
    They go on where they were when the child dies, but those that a signal has stopped.
    """
    environment = {name: value for name, value in os.environ.items() if name != process.OPERATION}
    task = Task(tuple(pids), tuple(alone), stays=True, are_frozen=are_frozen)
    holder = _start(task, environment)
    try:
        (holder.seize if are_frozen else holder.settle)()
    except BaseException:
        holder.release()
        raise
    return holder


def keeper(pid: int) -> int:
    """The child of `keep`, of this process or of another, that holds a process; 0 if none does."""
    tracer = procfs.tracer(pid)
    said = procfs.text(tracer, "cmdline")
    is_ours = f"from {__name__} import main" in said and "'stays': True" in said
    return tracer if is_ours and procfs.is_like_us(tracer) else 0


def debugger(pid: int) -> int:
    """Who traces a process, if that is nobody of ours; 0 for no one."""
    return 0 if keeper(pid) else procfs.tracer(pid)


def let_go(pids: Iterable[int]) -> None:
    """Let all go on that a child of `keep` holds together with one of *pids*."""
    for child in _keepers(pids):
        _tell(child, signal.SIGTERM)
        process.wait_exit(child, timeout_s=_END_DEADLINE_S)


def finish(pids: Iterable[int]) -> None:
    """Wait until children of `keep` that hold one of *pids* have done what they were asked for.

    Only when those who asked have died or closed their `Holder`. CommandError for a call in a
    process's name that does not end.
    """
    end = time.monotonic() + _FINISH_DEADLINE_S
    for child in _keepers(pids):
        while os.path.lexists(f"/proc/{child}/fd/{_REQUESTS_FD}"):
            if time.monotonic() > end:
                raise CommandError(
                    f"process {child}, which holds others still, did not end what it was asked for "
                    f"in {_FINISH_DEADLINE_S:.0f} s"
                )
            time.sleep(_ATTEND_EVERY_MS / 1000)


def stop_alone(pids: Iterable[int]) -> None:
    """Stop the threads that children of `keep` let run alone, of those that hold one of *pids*.

    Only for children that stay. Blocks until none runs; CommandError if one goes on running.
    """
    for child in _keepers(pids):
        _tell(child, _STOP)
    end = time.monotonic() + STOP_DEADLINE_S
    while moving := [pid for pid in pids if keeper(pid) and procfs.moving_threads(pid)]:
        if time.monotonic() > end:
            raise CommandError(f"process {moving[0]} did not stop in {STOP_DEADLINE_S:.0f} s")
        time.sleep(_ATTEND_EVERY_MS / 1000)


def run_alone(pids: Iterable[int]) -> None:
    """Undo `stop_alone`. Does not block."""
    for child in _keepers(pids):
        _tell(child, _RUN)


def _keepers(pids: Iterable[int]) -> set[int]:
    return {keeper(pid) for pid in pids} - {0}


def _tell(child: int, number: int) -> None:
    with suppress(ProcessLookupError):  # it has ended with those that it held
        os.kill(child, number)


@contextmanager
def _closing(holder: Holder) -> Iterator[Holder]:
    try:
        holder.settle()
        yield holder
    finally:
        holder.close()
        holder.wait()


def _start(task: Task, environment: Mapping[str, str]) -> Holder:
    request_fd, to_child, from_child, answer_fd = _pipes()
    with closing_fd(request_fd), closing_fd(answer_fd):
        argv = process.python(__name__, task._asdict())
        pid = process.spawn_apart(argv, environment, request_fd, answer_fd)
    return Holder(pid, to_child, from_child)


def _pipes() -> tuple[int, int, int, int]:
    return (*os.pipe(), *os.pipe())


def main(task: dict[str, Any]) -> None:
    """Do the task until standard input ends, or SIGTERM if it says so."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    asked: list[int] = []
    for number in (_STOP, _RUN):
        signal.signal(number, lambda number, _: asked.append(number))
    _serve(Task(**task), Hold(), asked)


def _serve(task: Task, hold: Hold, asked: list[int]) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # for `ptrace.wait`
    try:
        hold.seize(task.pids)
        # Whoever asked may have died already, and been undone: then nobody would let go of them.
        if not _write([]):
            return
        if not task.are_frozen:  # if one never stops, the others may be brought back all the same
            with _ended_by_sigterm():
                hold.settle()
        hold.run_alone(task.alone)
        _write([])
        _answer_requests(hold)
        if task.stays:
            _stay(task, hold, asked)
    except (GritError, OSError) as error:
        _write({"error": str(error)})
    finally:
        hold.release()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the child here, and nowhere else: what it does to a thread, it does whole."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _answer_requests(hold: Hold) -> None:
    """Answer requests, a line of JSON each, until standard input ends."""
    poll = select.poll()
    poll.register(_REQUESTS_FD, select.POLLIN)
    data = b""
    while True:
        hold.attend()
        with _ended_by_sigterm():
            is_asked = poll.poll(_ATTEND_EVERY_MS)
        if not is_asked:
            continue
        more = os.read(_REQUESTS_FD, _REQUEST_LIMIT_BYTES)
        if not more:
            return
        data += more
        if data.endswith(b"\n"):
            try:
                _write(_done(hold, *json.loads(data)))
            except (GritError, OSError) as error:
                _write({"error": str(error)})
            data = b""


def _done(hold: Hold, verb: str, argument: Any) -> object:
    if verb == "perform":
        return ptrace.perform([Syscall(pid, n, tuple(rest)) for pid, n, rest in argument])
    if verb == "killed":
        return list(hold.killed.items())
    if verb == "go_on":
        ptrace.go_on(argument)
    elif verb == "run_alone":
        hold.run_alone(argument)
    elif verb == "stop":
        hold.stop()
    elif verb == "settle":
        hold.settle()
    return []


def _stay(task: Task, hold: Hold, asked: list[int]) -> None:
    """Hold on until SIGTERM or the end of the processes, and do what signals ask for meanwhile."""
    os.close(_REQUESTS_FD)  # by which `finish` sees that it was heard
    asked.append(_RUN)
    while hold.attend():
        while asked:
            if asked.pop(0) == _RUN:
                hold.run_alone(task.alone)
            else:
                hold.stop()
        with _ended_by_sigterm():
            time.sleep(_ATTEND_EVERY_MS / 1000)


def _write(answer: object) -> bool:
    """Say something; False if nobody hears us any more."""
    try:
        os.write(_ANSWERS_FD, json.dumps(answer).encode() + b"\n")
    except BrokenPipeError:
        return False
    return True
