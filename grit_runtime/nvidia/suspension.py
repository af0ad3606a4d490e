"""Suspending the CUDA processes of a pod and bringing them back, by the driver's checkpoint calls.

The order matters: all processes of a pod are locked before the first is checkpointed, and nothing
is frozen before the lock, which needs the target's own threads. A checkpointed process has its
device memory in its own address space and holds no device, so CRIU can dump it.
"""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack, closing, contextmanager, nullcontext
from typing import Any

from grit_runtime import log
from grit_runtime.dump import moved_memory
from grit_runtime.errors import CommandError, GpuError, SourceLostError
from grit_runtime.host import procfs
from grit_runtime.host.process import wait_exit
from grit_runtime.host.procfs import container_pids
from grit_runtime.model import device_map, gpu_preflight
from grit_runtime.model import manifest as manifests
from grit_runtime.nvidia import cuda_processes, driver_calls, gpu_driver, inherited, threads
from grit_runtime.nvidia.libcuda import CHECKPOINTED, RUNNING, STATES, SUCCESS, Call
from grit_runtime.startup.named import NamedTuple
from grit_runtime.tasks import process_memory, ptrace_agent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from grit_runtime.model.device_map import Pairs
    from grit_runtime.model.memory_range import MemoryRange
    from grit_runtime.nvidia.gpu_driver import Card, CudaProcess, Driver
    from grit_runtime.pod.running_container import RunningContainer
    from grit_runtime.tasks.ptrace_agent import Holder


# The memory of a CUDA context, besides the program's own, differs a little from card to card.
_SLACK_BYTES = 256 << 20

# How long a process may take to die of what the driver has answered for already.
_DYING_S = 1.0


Mappings = dict[int, list["MemoryRange"]]  # by pid
Described = tuple[tuple[manifests.Gpu, ...], tuple[manifests.CudaProcess, ...]]


class Placement(NamedTuple):
    """Old and new UUID of every GPU that a dumped container was given."""

    driver: Driver
    pairs: Pairs


class Survey(NamedTuple):
    """The GPUs of a node and the CUDA processes of a pod, by container."""

    driver: Driver
    version: str
    cards: tuple[Card, ...]
    processes: dict[str, list[CudaProcess]]

    @property
    def all(self) -> list[CudaProcess]:
        return [process for some in self.processes.values() for process in some]

    @property
    def size_bytes(self) -> int:
        return sum(process.size_bytes for process in self.all)

    @property
    def running_pids(self) -> list[int]:
        """Pids that a checkpoint suspends; a process suspended before stays suspended."""
        return [process.pid for process in self.all if process.state == RUNNING]

    @property
    def kept_pids(self) -> list[int]:
        """Pids of processes that `grit gpu` has suspended before, and holds now."""
        return [process.pid for process in self.all if ptrace_agent.keeper(process.pid)]


class Suspended(NamedTuple):
    """Processes without their cards.

    *holder* keeps their threads from running, if there are any. *staged* is by pid the memory where
    the driver has what was on the cards.
    """

    holder: Holder | None
    staged: dict[int, tuple[MemoryRange, ...]]


def open_driver(token: str, *, processes: int = 1) -> Driver | None:
    """The node's driver, loading workers for so many *processes*; None without a driver."""
    driver = gpu_driver.find_driver(token)
    if driver:
        driver.warm(processes)
    return driver


@contextmanager
def opened_driver(token: str) -> Iterator[Driver | None]:
    """As `open_driver`; closed when the block ends, since an undo waits for all with *token*."""
    driver = open_driver(token)
    try:
        yield driver
    finally:
        if driver:
            driver.close()


def has_users(container: RunningContainer) -> bool:
    """Whether the container may have CUDA processes; reads only /proc."""
    return bool(gpu_driver.cuda_pids(container.pids()))


def survey(driver: Driver, containers: Sequence[RunningContainer]) -> Survey:
    """What the driver reports of the node and of every process of the containers."""
    version, cards = gpu_driver.cards(driver)
    processes = {c.name: gpu_driver.processes(driver, c.pids(), cards) for c in containers}
    return Survey(driver, version, tuple(cards), processes)


def describe(surveyed: Survey, container: RunningContainer) -> Described:
    """The GPUs that the container was given and its CUDA processes, as the manifest keeps them."""
    number = container_pids(p.pid for p in surveyed.processes[container.name])
    processes = tuple(
        manifests.CudaProcess(
            number[p.pid], tuple(manifests.DeviceMemory(*pair) for pair in p.used_bytes.items())
        )
        for p in surveyed.processes[container.name]
    )
    return cuda_processes.described(
        cuda_processes.assigned_cards(container.spec, surveyed.cards)
    ), processes


def refuse_unrestorable(surveyed: Survey, containers: Sequence[RunningContainer]) -> None:
    """FailedPreconditionError, with all reasons, for a pod whose checkpoint could not be undone."""
    users = [container for container in containers if surveyed.processes[container.name]]
    reasons = gpu_preflight.refusals(
        [
            cuda_processes.container_facts(
                c.name, c.init_pid, c.spec, surveyed.cards, surveyed.processes[c.name]
            )
            for c in users
        ],
        [
            cuda_processes.process_facts(p, c.name)
            for c in users
            for p in surveyed.processes[c.name]
        ],
        host_left_bytes=cuda_processes.host_left_bytes(),
    )
    reasons += [
        f"process {process.pid} is {STATES[process.state]} already; grit gpu unlock it first"
        for process in surveyed.all
        if process.state not in (RUNNING, CHECKPOINTED)
    ]
    _, others = inherited.find(_all_pids(containers), [p.pid for p in surveyed.all])
    reasons += [
        f"process {pid} holds {node} without having it from a CUDA process that runs; end it, or "
        "have it close that"
        for pid in others
        for node in gpu_driver.held_nodes(pid)[:1]  # it may have ended
    ]
    if surveyed.all and (why := gpu_preflight.deadly(surveyed.version)):
        reasons.append(why)
    if reasons:
        raise GpuError("; ".join(reasons))


def suspend(
    surveyed: Survey,
    containers: Sequence[RunningContainer],
    token: str,
    timeline: log.Timeline,
    meanwhile: Callable[[Mappings], AbstractContextManager[object]] = nullcontext,
) -> Suspended:
    """Take the cards from all processes, whose threads stand until they are let go.

    On an error they may stand too: whoever brings the processes back lets them go. *meanwhile* is
    given the memory that the processes had before the driver begins to stage in them, and entered
    while it does.
    """
    driver = surveyed.driver
    running = [process for process in surveyed.all if process.state == RUNNING]
    pids = [process.pid for process in running]
    if not running:
        return Suspended(None, {})
    with timeline.phase("gpu lock"), telling_of_the_dead(pids, "lock"):
        driver_calls.lock(driver, pids)
        holder = threads.keep(driver, pids)
    try:
        inherited.let_go(lambda: _all_pids(containers), [p.pid for p in surveyed.all], token)
        before = {pid: process_memory.anonymous(pid) for pid in pids}
        size_bytes = sum(process.size_bytes for process in running)
        with (
            timeline.phase("gpu checkpoint", size_bytes=size_bytes),
            telling_of_the_dead(pids, "checkpoint", holder),
            meanwhile(before),
        ):
            driver_calls.checkpoint(driver, running)
    except BaseException:
        holder.close()
        raise
    return Suspended(holder, moved_memory.appeared(before))


def _all_pids(containers: Sequence[RunningContainer]) -> set[int]:
    return {pid for container in containers for pid in container.pids()}


@contextmanager
def telling_of_the_dead(
    pids: Sequence[int], verb: str, holder: Holder | None = None
) -> Iterator[None]:
    """SourceLostError for a process that has died in the block, whatever else went wrong."""
    try:
        yield
    except CommandError as error:
        _refuse_dead(pids, verb, holder, error)
        raise
    _refuse_dead(pids, verb, holder, None)


def _refuse_dead(
    pids: Sequence[int], verb: str, holder: Holder | None, error: CommandError | None
) -> None:
    end = time.monotonic() + (_DYING_S if error else 0)
    for pid in pids:
        if not wait_exit(pid, timeout_s=max(0.0, end - time.monotonic())):
            continue
        killed = holder.killed() if holder else {}
        number = killed.get(pid) or procfs.killed_by(pid)
        by = f"was killed by {signal.Signals(number).name}" if number else "has ended"
        raise SourceLostError(
            f"source lost: process {pid} {by} in the GPU driver's {verb}; no checkpoint of it was "
            "sealed"
        ) from error


def not_suspended(containers: Sequence[RunningContainer]) -> list[str]:
    """The devices that CUDA processes of frozen containers, newer than the survey, have open.

    The driver is not asked: it does not answer about a frozen process.
    """
    return [
        f"process {pid} holds {node}"
        for pid in sorted(_all_pids(containers))
        for node in gpu_driver.held_nodes(pid)
    ]


def plan(
    driver: Driver | None, dumped: manifests.Container, spec: dict[str, Any], requested_map: str
) -> Placement:
    """Where the GPU memory of a dumped container goes in the new pod.

    FailedPreconditionError or InvalidArgumentError if it has no place here. This is checked before
    anything is restored: a process whose CUDA restore runs out of memory is stuck for ever.
    """
    if driver is None:
        raise GpuError(
            f"container {dumped.name} has GPU memory, and this node has no NVIDIA driver"
        )
    _, cards = gpu_driver.cards(driver)
    given = cuda_processes.assigned_cards(spec, cards)
    pairs = device_map.plan(dumped.gpus, cuda_processes.described(given), requested_map)
    placement = Placement(driver, pairs)
    _check_room(dumped, placement, given)
    return placement


def bring_back(
    placement: Placement,
    dumped: manifests.Container,
    pids: Sequence[int],
    holder: Holder,
    timeline: log.Timeline,
) -> None:
    """Give restored processes their GPU memory, verified and unlocked; *holder* still holds them.

    *pids* are this node's, in the order of the manifest's CUDA processes.
    """
    size_bytes = sum(process.size_bytes for process in dumped.cuda)
    driver = placement.driver
    _check_room(dumped, placement, gpu_driver.cards(driver)[1])
    with threads.alone(holder, driver, pids):
        with timeline.phase("gpu restore", size_bytes=size_bytes):
            largest = max(process.size_bytes for process in dumped.cuda)
            driver_calls.restore(driver, pids, placement.pairs, size_bytes=largest)
        with timeline.phase("gpu unlock"):
            driver_calls.unlock(driver, pids)
    _, cards = gpu_driver.cards(driver)
    for pid, process in zip(pids, dumped.cuda, strict=True):
        size_bytes = sum(card.used_bytes.get(pid, 0) for card in cards)
        if size_bytes + _SLACK_BYTES < process.size_bytes:
            raise CommandError(
                f"process {process.pid} came back with {size_bytes} of "
                f"{process.size_bytes} bytes of GPU memory"
            )


def _check_room(dumped: manifests.Container, placement: Placement, cards: Sequence[Card]) -> None:
    """FailedPreconditionError unless each card has as much free as its processes will take."""
    free = {card.uuid: card.free_bytes for card in cards}
    memories = [memory for process in dumped.cuda for memory in process.devices]
    for old, uuid in placement.pairs:
        needed = sum(memory.size_bytes for memory in memories if memory.uuid == old)
        if needed > free[uuid]:
            raise GpuError(
                f"GPU {uuid} has {free[uuid] >> 20} MiB free, the checkpoint needs "
                f"{needed >> 20} MiB on it; free the card or use another"
            )


def bring_back_running(driver: Driver, pids: Sequence[int]) -> None:
    """Make processes run again, whatever state a failed or killed operation left them in.

    As `driver_calls.bring_back`, while the driver's threads alone run.
    """
    with threads.kept_if_possible(driver, pids):
        driver_calls.bring_back(driver, pids)


def bring_back_pids(token: str, pids: Sequence[int]) -> None:
    """As `bring_back_running`, for an undo that has no driver open."""
    driver = gpu_driver.find_driver(token)
    if driver is None:
        shown = ", ".join(map(str, pids))
        raise SourceLostError(f"source lost: no GPU driver to bring back processes {shown}")
    with closing(driver):
        bring_back_running(driver, pids)


def bring_back_standing(token: str, pids: Sequence[int], holder: Holder) -> None:
    """As `bring_back_pids`, for processes that *holder* holds, and goes on to."""
    with opened_driver(token) as driver:
        if driver:
            with threads.alone(holder, driver, pids):
                driver_calls.bring_back(driver, pids)


@contextmanager
def standing(token: str, pids: Sequence[int]) -> Iterator[None]:
    """Let processes, which may be frozen, be thawed in the block without running on.

    What fails is only logged: an undo goes on.
    """
    driver = gpu_driver.find_driver(token) if pids else None
    with ExitStack() as stack:
        if driver:
            stack.enter_context(closing(driver))
            stack.enter_context(threads.kept_if_possible(driver, pids, are_frozen=True))
        yield


def stand_again(token: str, pids: Sequence[int]) -> None:
    """Hold frozen processes, which were held before, again from when they are thawed on.

    Those that still are, are held as before: their driver's threads alone run.
    """
    ptrace_agent.run_alone(pids)
    free = threads.unkept(pids)
    driver = gpu_driver.find_driver(token) if free else None
    if driver:
        with closing(driver):
            threads.keep_again(driver, free)


def suspend_to_kill(token: str, pids: Sequence[int]) -> None:
    """Take the cards from processes that are about to be killed; failures are only logged.

    Killing a process that was restored and runs can hang a node (NVIDIA/cuda-checkpoint#53).
    """
    driver = gpu_driver.find_driver(token)
    if driver is None:
        return
    with closing(driver):
        living = gpu_driver.cuda_pids(pids)
        try:
            with threads.kept(driver, living):
                _suspend_to_kill(driver, living)
        except CommandError as error:
            log.warning("not suspended before its end", reason=str(error))


def _suspend_to_kill(driver: Driver, living: Sequence[int]) -> None:
    states = gpu_driver.states(driver, living)
    running = [pid for pid in living if states[pid] == (SUCCESS, RUNNING)]
    for verb in ("lock", "checkpoint"):
        calls = [Call(verb, pid, timeout_ms=driver_calls.LOCK_TRY_MS) for pid in running]
        answers = gpu_driver.perform(driver, calls, deadline_s=driver_calls.MOVE_DEADLINE_S)
        for call, answer in zip(calls, answers, strict=True):
            if answer.code != SUCCESS:
                raise driver_calls.failure(call, answer)
