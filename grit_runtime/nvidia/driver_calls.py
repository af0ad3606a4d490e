"""The driver's checkpoint calls on many processes at once, in the order that works."""

from __future__ import annotations

import os
import time

from grit_runtime import log
from grit_runtime.errors import CommandError, DriverError, SourceLostError
from grit_runtime.host import procfs
from grit_runtime.host.process import wait_exit
from grit_runtime.nvidia import gpu_driver
from grit_runtime.nvidia.libcuda import (
    CHECKPOINTED,
    ERRORS,
    FAILED,
    LOCKED,
    NOT_READY,
    NOT_SUPPORTED,
    RUNNING,
    STATES,
    SUCCESS,
    Call,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from grit_runtime.model.device_map import Pairs
    from grit_runtime.nvidia.gpu_driver import CudaProcess, Driver
    from grit_runtime.nvidia.libcuda import Answer


_REST = (RUNNING, LOCKED, CHECKPOINTED)  # the states in which no call is under way

_LOCK_DEADLINE_S = 60.0
_FIRST_LOCK_TRY_MS = 500
LOCK_TRY_MS = 10_000
_SETTLE_DEADLINE_S = 60.0
_SETTLE_POLL_S = 0.1
_STATE_DEADLINE_S = 20.0

# A call that moves memory may take this long, and a second more for each 200 MiB: a tenth of the
# rate that was measured with 4 KiB pages.
MOVE_DEADLINE_S = 60.0
_SLOWEST_BYTES_PER_S = 200 << 20

_MANAGED = (
    "; a process with managed memory (cudaMallocManaged) cannot be checkpointed: use cudaMalloc, "
    "for PyTorch leave PYTORCH_CUDA_ALLOC_CONF without managed backends"
)


def lock(driver: Driver, pids: Sequence[int], *, deadline_s: float = _LOCK_DEADLINE_S) -> None:
    """Lock all, or none. Blocks until submitted work has ended.

    The first tries are short: in a collective, a process may wait for another that is locked
    already, and only unlocking both resolves that.
    """
    end = time.monotonic() + deadline_s
    try_ms = _FIRST_LOCK_TRY_MS
    while True:
        left_s = end - time.monotonic()
        timeout_ms = max(1, min(try_ms, int(left_s * 1000)))
        try_ms = min(2 * try_ms, LOCK_TRY_MS)
        calls = [Call("lock", pid, timeout_ms=timeout_ms) for pid in pids]
        answers = gpu_driver.perform(driver, calls, deadline_s=timeout_ms / 1000 + 5)
        bad = [(call, answer) for call, answer in zip(calls, answers, strict=True) if answer.code]
        if not bad:
            return
        bring_back(driver, pids)
        if time.monotonic() >= end or any(answer.code != NOT_READY for _, answer in bad):
            raise failure(*bad[0])
        log.info("lock timed out, trying again", pids=",".join(str(call.pid) for call, _ in bad))


def checkpoint(driver: Driver, processes: Sequence[CudaProcess]) -> None:
    """Move the device memory of locked processes into their host memory; this frees the cards."""
    calls = [Call("checkpoint", process.pid) for process in processes]
    perform_all(driver, calls, size_bytes=max(process.size_bytes for process in processes))
    for process in processes:
        held = gpu_driver.held_nodes(process.pid)
        if held:
            raise DriverError(
                f"process {process.pid} still holds {', '.join(held)} after its CUDA checkpoint"
            )


def restore(driver: Driver, pids: Sequence[int], pairs: Pairs, *, size_bytes: int) -> None:
    """Move memory back to the cards that *pairs* name; the processes stay locked.

    *size_bytes* is that of the largest process; it sets the deadline.
    """
    # Without a map every process returns to its own cards, which drivers before 580 can do too.
    real = () if all(old == new for old, new in pairs) else pairs
    calls = [Call("restore", pid, pairs=real) for pid in pids]
    perform_all(driver, calls, size_bytes=size_bytes)


def unlock(driver: Driver, pids: Sequence[int]) -> None:
    """Let locked processes run; CommandError unless the driver then reports that they run."""
    batches = [[Call("unlock", pid), Call("state", pid)] for pid in pids]
    answers = driver.call(batches, deadline_s=MOVE_DEADLINE_S)
    for pid, (unlocked, answer) in zip(pids, answers, strict=True):
        if unlocked.code != SUCCESS:
            raise failure(Call("unlock", pid), unlocked)
        if answer != (SUCCESS, RUNNING):
            raise DriverError(f"process {pid} is {state_name(answer)} after its CUDA restore")


def bring_back(driver: Driver, pids: Sequence[int]) -> None:
    """Unlock *pids*, whatever state a failed or killed operation left them in.

    SourceLostError, with the driver's answer, for a process that cannot be brought back. Processes
    that have ended are ignored.
    """
    states = _settled(driver, pids)
    suspended = [pid for pid, state in states.items() if state == CHECKPOINTED]
    locked = [pid for pid, state in states.items() if state == LOCKED]
    calls = [Call("restore", pid) for pid in suspended]
    deadline_s = _deadline_s(resident_bytes(suspended))
    answers = gpu_driver.perform(driver, calls, deadline_s=deadline_s)
    lost = [(call, answer) for call, answer in zip(calls, answers, strict=True) if answer.code]
    locked += [call.pid for call in calls if call.pid not in {call.pid for call, _ in lost}]
    try:
        unlock(driver, locked)
    except CommandError as error:
        raise SourceLostError(f"source lost: {error}") from None
    if lost:
        raise SourceLostError(f"source lost: {failure(*lost[0])}")


def state_name(answer: Answer) -> str:
    """``running``, or the driver's error."""
    if answer.code != SUCCESS:
        return error_name(answer.code)
    return STATES[answer.value] if answer.value < len(STATES) else f"in state {answer.value}"


def error_name(code: int) -> str:
    if code == gpu_driver.OVERDUE.code:
        return "no answer within its deadline"
    if code == gpu_driver.DIED.code:
        return "the calling process died"
    return f"{ERRORS.get(code, 'CUDA error')} ({code})"


def perform_all(driver: Driver, calls: Sequence[Call], *, size_bytes: int = 0) -> None:
    """Make all calls at the same time; when all have ended, CommandError for the first failure."""
    answers = gpu_driver.perform(driver, calls, deadline_s=_deadline_s(size_bytes))
    for call, answer in zip(calls, answers, strict=True):
        if answer.code != SUCCESS:
            raise failure(call, answer)


def _deadline_s(size_bytes: int) -> float:
    return MOVE_DEADLINE_S + size_bytes / _SLOWEST_BYTES_PER_S


def failure(call: Call, answer: Answer) -> CommandError:
    hint = _MANAGED if call.verb == "checkpoint" and answer.code == NOT_SUPPORTED else ""
    return DriverError(f"process {call.pid}: CUDA {call.verb}: {error_name(answer.code)}{hint}")


def _settled(driver: Driver, pids: Sequence[int]) -> dict[int, int]:
    """The states of the living processes, once no call is under way on any of them.

    The driver does not answer about a process while it works on it, or while it is frozen.
    """
    size_bytes = resident_bytes(_living(pids))
    end = time.monotonic() + _SETTLE_DEADLINE_S + size_bytes / _SLOWEST_BYTES_PER_S
    while True:
        answers = _answers(driver, _living(pids))
        settled = {p: a.value for p, a in answers.items() if a.code == SUCCESS and a.value in _REST}
        if len(settled) == len(answers):
            return settled
        failed = [pid for pid, answer in answers.items() if answer == (SUCCESS, FAILED)]
        if failed or time.monotonic() > end:
            pid = failed[0] if failed else next(p for p in answers if p not in settled)
            raise SourceLostError(f"source lost: process {pid} is {state_name(answers[pid])}")
        time.sleep(_SETTLE_POLL_S)


def _living(pids: Sequence[int]) -> list[int]:
    return [pid for pid in pids if not wait_exit(pid, timeout_s=0)]


def _answers(driver: Driver, pids: Sequence[int]) -> dict[int, Answer]:
    """The states, each queried apart: a process without an answer must not hide the others."""
    calls = [Call("state", pid) for pid in pids]
    answers = gpu_driver.perform(driver, calls, deadline_s=_STATE_DEADLINE_S)
    return dict(zip(pids, answers, strict=True))


def resident_bytes(pids: Sequence[int]) -> int:
    """The resident memory of the largest process; device memory is in it while suspended."""
    sizes = [0]
    for pid in pids:
        words = procfs.text(pid, "statm").split() or ("0", "0")
        sizes.append(int(words[1]) * os.sysconf("SC_PAGESIZE"))
    return max(sizes)
