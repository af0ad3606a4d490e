"""Holding processes still by ptrace, or all their threads but some.

Spec: ptrace(2). All of it must happen in one thread, which the kernel takes for the tracer. When
that thread ends, the processes go on where they were, but for those that a signal has stopped.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from grit_runtime.errors import CommandError
from grit_runtime.host import procfs
from grit_runtime.tasks import ptrace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_O_TRACESYSGOOD, _O_SUSPEND_SECCOMP = 1, 1 << 21
_OPTIONS = _O_TRACESYSGOOD | _O_SUSPEND_SECCOMP
STOP_DEADLINE_S = 10.0

# What a thread brings on itself. It is not kept from a thread that runs alone.
_FAULTS = {
    *(signal.SIGSEGV, signal.SIGBUS, signal.SIGILL),
    *(signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS),
}
_KEPT_BACK = ptrace.ALL_SIGNALS & ~sum(1 << (number - 1) for number in _FAULTS)


class Hold:
    """The threads that this thread holds. None of them runs an instruction of its own meanwhile."""

    def __init__(self, *, in_stop: bool = False) -> None:
        """*in_stop* says that SIGSTOP has stopped all processes, or is about to."""
        self.killed: dict[int, int] = {}  # signals that have killed threads
        self._in_stop = in_stop
        self._pids: set[int] = set()
        self._tids: set[int] = set()
        self._moving: list[int] = []  # those that were not seen to stop yet
        self._alone: set[int] = set()  # those that are to run alone when they have stopped
        self._masks: dict[int, int] = {}  # of the threads that run alone, before that

    def seize(self, pids: Iterable[int]) -> bool:
        """Have all threads of the processes stop; False if none was new. Does not block.

        A process that SIGSTOP has stopped stays so. The threads of a frozen one stop when it is
        thawed, before they run. Those that have ended are left out.
        """
        found = False
        for pid in pids:
            self._pids.add(pid)
            is_stopped = self._in_stop or procfs.is_stopped(pid)
            for tid in _threads(pid) - self._tids:
                found = True
                self._tids.add(tid)
                with suppress(ProcessLookupError):  # it has ended
                    ptrace.request(ptrace.SEIZE, tid, data=_OPTIONS)
                    if not is_stopped:
                        ptrace.request(ptrace.INTERRUPT, tid)
                    self._moving.append(tid)
        return found

    def settle(self) -> None:
        """Wait until all threads have stopped, also those that others have started meanwhile.

        CommandError for a thread that does not stop.
        """
        while True:
            while self._moving:
                with suppress(ChildProcessError, ProcessLookupError):
                    ptrace.wait(self._moving[-1], None, deadline_s=STOP_DEADLINE_S)
                self._moving.pop()
            if not self._seize_new():
                return

    def _seize_new(self) -> bool:
        return self.seize(tuple(self._pids))

    def run_alone(self, tids: Iterable[int]) -> None:
        """Let threads run while the others stand, and keep signals of others from them.

        A signal to the process would be theirs to handle: no other thread can take it. It is
        handled by whom it may concern after `stop`. One that has not stopped yet runs so when
        `attend` has seen it stop.
        """
        self._alone |= set(tids) - self._masks.keys()
        for tid in self._alone.difference(self._moving):
            self._alone.discard(tid)
            with suppress(ProcessLookupError):
                mask = ptrace.signal_mask(tid).value
                ptrace.set_signal_mask(tid, _KEPT_BACK)
                ptrace.request(ptrace.SETOPTIONS, tid)  # its own seccomp filter applies
                self._masks[tid] = mask
                ptrace.request(ptrace.CONT, tid)

    def stop(self) -> None:
        """Hold the threads again that run alone, and those that they have started meanwhile.

        CommandError for one that does not stop.
        """
        self._alone.clear()
        if self._masks:
            self._stop_alone()
            self.settle()

    def _stop_alone(self) -> None:
        for tid, mask in list(self._masks.items()):
            with suppress(ChildProcessError, ProcessLookupError):
                ptrace.request(ptrace.INTERRUPT, tid)
                ptrace.wait(tid, None, deadline_s=STOP_DEADLINE_S)
                ptrace.request(ptrace.SETOPTIONS, tid, data=_OPTIONS)
                ptrace.set_signal_mask(tid, mask)
            del self._masks[tid]

    def attend(self) -> bool:
        """See to what has become of threads, without blocking; False if all have ended.

        A thread that runs alone and faults is let go: a namespace's init does not die of a fault
        while it is traced (linux kernel/signal.c force_sig_info_to_task).
        """
        while True:
            try:
                tid, status = os.waitpid(-1, ptrace.WALL | os.WNOHANG)
            except ChildProcessError:
                return False
            if not tid:
                return True
            if os.WIFSIGNALED(status):
                self.killed[tid] = os.WTERMSIG(status)
            if tid in self._moving:
                self._see_stopping(tid, status)
            elif os.WIFSTOPPED(status) and tid in self._masks:
                self._go_on(tid, 0 if ptrace.is_event(status) else os.WSTOPSIG(status))

    def _see_stopping(self, tid: int, status: int) -> None:
        """As `settle` does, of one thread."""
        if os.WIFSTOPPED(status) and not ptrace.is_event(status):
            with suppress(ProcessLookupError):
                ptrace.request(ptrace.CONT, tid, data=os.WSTOPSIG(status))
            return
        self._moving.remove(tid)
        self.run_alone(())
        if not self._moving:
            self._seize_new()

    def _go_on(self, tid: int, number: int) -> None:
        request = ptrace.CONT
        if number in _FAULTS:
            request = ptrace.DETACH
            del self._masks[tid]
        with suppress(ProcessLookupError):
            ptrace.request(request, tid, data=number)

    def release(self) -> None:
        """Let all go on; those that a signal has stopped stay so."""
        with suppress(CommandError):  # the kernel releases that thread when this one ends
            self._stop_alone()
        for tid in self._tids:
            with suppress(ProcessLookupError):
                ptrace.request(ptrace.DETACH, tid)


def refuse_stopped(pids: Iterable[int]) -> None:
    """CommandError for a process that a signal has stopped."""
    for pid in pids:
        if procfs.is_stopped(pid):
            raise CommandError(f"process {pid} is stopped by a signal; continue it (SIGCONT) first")


def _threads(pid: int) -> set[int]:
    """The live threads of a process: its first thread may have ended before the others."""
    with suppress(FileNotFoundError, ProcessLookupError):
        tids = {int(name) for name in os.listdir(f"/proc/{pid}/task")}
        return {tid for tid in tids if not procfs.is_zombie(tid)}
    return set()  # the process has ended
