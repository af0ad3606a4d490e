"""The threads of CUDA processes while the driver has their memory: only its own may run.

A lock does not stop a thread that is inside a call of the driver's: it goes on polling a page that
the checkpoint takes away, and the process dies (measured: JAX, driver 580). So all threads but one,
where the driver works, are held from the lock to the freeze, and from a restore to the unlock.
Source: cuda.h, cuCheckpointProcessGetRestoreThreadId, which answers for stopped processes too.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

from grit_runtime import log
from grit_runtime.errors import CommandError
from grit_runtime.host.process import wait_exit
from grit_runtime.nvidia import driver_calls, gpu_driver
from grit_runtime.nvidia.libcuda import SUCCESS, Call
from grit_runtime.tasks import ptrace_agent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from grit_runtime.nvidia.gpu_driver import Driver
    from grit_runtime.tasks.ptrace_agent import Holder

_DEADLINE_S = 20.0


def of_driver(driver: Driver, pids: Sequence[int]) -> list[int]:
    """The driver's threads in the living ones of *pids*, as this node numbers them."""
    calls = [Call("restore-tid", pid) for pid in pids]
    tids = []
    for call, answer in zip(
        calls, gpu_driver.perform(driver, calls, deadline_s=_DEADLINE_S), strict=True
    ):
        if answer.code == SUCCESS:
            tids.append(answer.value)
        elif not wait_exit(call.pid, timeout_s=0):
            raise driver_calls.failure(call, answer)
    return tids


def keep(driver: Driver, pids: Sequence[int], *, are_frozen: bool = False) -> Holder:
    """Hold all threads but the driver's until `let_go`, also when this process dies.

    If they *are_frozen*, they stand when they are thawed.
    """
    return ptrace_agent.keep(pids, of_driver(driver, pids), are_frozen=are_frozen)


def unkept(pids: Sequence[int]) -> list[int]:
    """The living ones of *pids* that nobody keeps."""
    return [p for p in pids if not ptrace_agent.keeper(p) and not wait_exit(p, timeout_s=0)]


def let_go(pids: Sequence[int]) -> None:
    """End what `keep` began, in this process or in another."""
    ptrace_agent.let_go(pids)


@contextmanager
def kept(driver: Driver, pids: Sequence[int], *, are_frozen: bool = False) -> Iterator[None]:
    """As `keep` while the block lasts; what somebody else keeps stays so, and is let go too.

    If they *are_frozen*, they may be thawed in the block.
    """
    free = unkept(pids)
    holder = keep(driver, free, are_frozen=are_frozen) if free else None
    try:
        yield
    finally:
        if holder:
            holder.release()
        let_go(pids)


@contextmanager
def kept_if_possible(
    driver: Driver, pids: Sequence[int], *, are_frozen: bool = False
) -> Iterator[None]:
    """As `kept`, but what fails is only logged: they can be brought back all the same."""
    with ExitStack() as stack:
        stack.callback(let_go, pids)
        try:
            stack.enter_context(kept(driver, pids, are_frozen=are_frozen))
        except CommandError as error:
            _tell_running(error)
        yield


def keep_again(driver: Driver, pids: Sequence[int]) -> None:
    """Hold frozen processes from when they are thawed on; what fails is only logged."""
    try:
        keep(driver, pids, are_frozen=True).close()
    except CommandError as error:
        _tell_running(error)


def _tell_running(error: CommandError) -> None:
    log.warning("threads run on without their GPUs", reason=str(error))


@contextmanager
def alone(holder: Holder, driver: Driver, pids: Sequence[int]) -> Iterator[None]:
    """Let the driver's threads run, of processes that *holder* holds, while the block lasts."""
    holder.run_alone(of_driver(driver, pids))
    try:
        yield
    finally:
        holder.stop()


@contextmanager
def until_frozen(holder: Holder | None, others: Sequence[int]) -> Iterator[None]:
    """Hold the driver's threads too while the block freezes the processes, then let all go.

    *others* are processes that `keep` held before. If the block fails, all stand as before.
    """
    try:
        ptrace_agent.stop_alone(others)
        if holder:
            holder.stop()
        yield
        if holder:
            holder.release()
        let_go(others)
    except BaseException:
        ptrace_agent.run_alone(others)
        raise
    finally:
        if holder:
            holder.close()
