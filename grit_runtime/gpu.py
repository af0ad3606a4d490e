"""Suspending the CUDA processes of a pod and bringing them back, by the driver's checkpoint calls.

The order matters: all processes of a pod are locked before the first is checkpointed, and nothing
is frozen before the lock, which needs the target's own threads. A checkpointed process has its
device memory in its own address space and holds no device, so CRIU can dump it.
"""

from __future__ import annotations

import os
import time
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

from grit_runtime import log
from grit_runtime.errors import CommandError, FailedPreconditionError, SourceLostError
from grit_runtime.host import cgroup, gpu, gpu_facts, process_memory, staged_memory
from grit_runtime.host.cuda import (
    CHECKPOINTED,
    ERRORS,
    FAILED,
    LOCKED,
    NOT_READY,
    RUNNING,
    STATES,
    SUCCESS,
    Call,
)
from grit_runtime.model import device_map, gpu_preflight
from grit_runtime.model import manifest as manifests

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from grit_runtime.host.cuda import Answer
    from grit_runtime.host.gpu import Card, CudaProcess, Driver
    from grit_runtime.model.device_map import Pairs
    from grit_runtime.model.memory_range import MemoryRange

_LOCK_DEADLINE_S = 60.0
_FIRST_LOCK_TRY_MS = 500
_LOCK_TRY_MS = 10_000
_SETTLE_DEADLINE_S = 60.0
_SETTLE_POLL_S = 0.1
_STATE_DEADLINE_S = 20.0

# A call that moves memory may take this long, and a second more for each 200 MiB: a tenth of the
# rate that was measured with 4 KiB pages.
_MOVE_DEADLINE_S = 60.0
_SLOWEST_BYTES_PER_S = 200 << 20

# What a context takes besides the program's own memory differs a little from card to card.
_SLACK_BYTES = 256 << 20

_MANAGED = (
    "; a process with managed memory (cudaMallocManaged) cannot be checkpointed: use cudaMalloc, "
    "for PyTorch leave PYTORCH_CUDA_ALLOC_CONF without managed backends"
)


class Container(NamedTuple):
    """A running container as runc knows it; *paused* if somebody had paused it before we came."""

    name: str
    id: str
    init_pid: int
    paused: bool
    bundle_dir: str
    spec: dict[str, Any]

    def pids(self) -> set[int]:
        return cgroup.pids(cgroup.of(self.init_pid))

    def has_users(self) -> bool:
        """Whether the driver may have something to say of it; asks only /proc."""
        return bool(gpu.users(self.pids()))


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
        """Those that a checkpoint suspends; what was suspended before stays so afterwards."""
        return [process.pid for process in self.all if process.state == RUNNING]


def open_driver(token: str, *, processes: int = 1) -> Driver | None:
    """The node's driver, getting ready to be asked about so many processes; None without one."""
    driver = gpu.find_driver(token)
    if driver:
        driver.warm(processes)
    return driver


@contextmanager
def opened_driver(token: str) -> Iterator[Driver | None]:
    """The same, closed when the block ends: an undoing waits for all that carries *token*."""
    driver = open_driver(token)
    try:
        yield driver
    finally:
        if driver:
            driver.close()


def survey(driver: Driver, containers: Sequence[Container]) -> Survey:
    """What the driver says of the node and of every process of the containers."""
    version, cards = gpu.cards(driver)
    found = {c.name: gpu.processes(driver, c.pids(), cards) for c in containers}
    return Survey(driver, version, tuple(cards), found)


def describe(found: Survey, container: Container) -> Described:
    """The GPUs that the container was given and its CUDA processes, as the manifest keeps them."""
    number = gpu_facts.container_pids(p.pid for p in found.processes[container.name])
    processes = tuple(
        manifests.CudaProcess(
            number[p.pid], tuple(manifests.DeviceMemory(*pair) for pair in p.used_bytes.items())
        )
        for p in found.processes[container.name]
    )
    return gpu_facts.described(gpu_facts.given(container.spec, found.cards)), processes


def refuse_unrestorable(found: Survey, containers: Sequence[Container]) -> None:
    """FailedPreconditionError, with all reasons, for a pod whose checkpoint could not be undone."""
    users = [container for container in containers if found.processes[container.name]]
    reasons = gpu_preflight.refusals(
        [
            gpu_facts.container_facts(
                c.name, c.init_pid, c.spec, found.cards, found.processes[c.name]
            )
            for c in users
        ],
        [gpu_facts.process_facts(p, c.name) for c in users for p in found.processes[c.name]],
        host_left_bytes=gpu_facts.host_left_bytes(),
    )
    reasons += [
        f"process {process.pid} is {STATES[process.state]} already; grit gpu unlock it first"
        for process in found.all
        if process.state not in (RUNNING, CHECKPOINTED)
    ]
    known = {process.pid for process in found.all}
    heirs = {pid for c in containers for pid in c.pids() - known if gpu.held_nodes(pid)}
    reasons += [
        f"process {pid} inherited {gpu.held_nodes(pid)[0]} from the CUDA process that forked it, "
        "and keeps it open; start such workers before CUDA is used, or by spawn"
        for pid in sorted(heirs)
    ]
    if reasons:
        raise FailedPreconditionError("; ".join(reasons))


def suspend(found: Survey, timeline: log.Timeline) -> dict[int, tuple[MemoryRange, ...]]:
    """Take the cards from all processes that have any; where in each their memory is staged."""
    running = [process for process in found.all if process.state == RUNNING]
    if not running:
        return {}
    with timeline.phase("gpu lock"):
        lock(found.driver, found.running_pids)
    before = {process.pid: process_memory.anonymous(process.pid) for process in running}
    size_bytes = sum(process.size_bytes for process in running)
    with timeline.phase("gpu checkpoint", size_bytes=size_bytes):
        checkpoint(found.driver, running)
    return staged_memory.appeared(before)


def not_suspended(containers: Sequence[Container]) -> list[str]:
    """What CUDA processes that came after the survey hold; to be asked of frozen containers.

    The driver is not asked: it answers nothing about a process that is frozen.
    """
    pids = {pid for container in containers for pid in container.pids()}
    return [f"process {pid} holds {node}" for pid in sorted(pids) for node in gpu.held_nodes(pid)]


def plan(
    driver: Driver | None, dumped: manifests.Container, spec: dict[str, Any], wanted: str
) -> Placement:
    """Where the GPU memory of a dumped container goes in the new pod.

    FailedPreconditionError or InvalidArgumentError if it has no place here, before anything is
    restored: a process whose CUDA restore runs out of memory is stuck for ever.
    """
    if driver is None:
        raise FailedPreconditionError(
            f"container {dumped.name} has GPU memory, and this node has no NVIDIA driver"
        )
    _, cards = gpu.cards(driver)
    given = gpu_facts.given(spec, cards)
    pairs = device_map.plan(dumped.gpus, gpu_facts.described(given), wanted)
    placement = Placement(driver, pairs)
    _check_room(dumped, placement, given)
    return placement


def bring_back(
    placement: Placement,
    dumped: manifests.Container,
    pids: Sequence[int],
    timeline: log.Timeline,
) -> None:
    """Give restored processes their GPU memory and let them run, verified.

    *pids* are this node's, in the order of the manifest's CUDA processes.
    """
    size_bytes = sum(process.size_bytes for process in dumped.cuda)
    driver = placement.driver
    _check_room(dumped, placement, gpu.cards(driver)[1])
    with timeline.phase("gpu restore", size_bytes=size_bytes):
        largest = max(process.size_bytes for process in dumped.cuda)
        restore(driver, pids, placement.pairs, size_bytes=largest)
    with timeline.phase("gpu unlock"):
        unlock(driver, pids)
    _, cards = gpu.cards(driver)
    for pid, wanted in zip(pids, dumped.cuda, strict=True):
        size_bytes = sum(card.used_bytes.get(pid, 0) for card in cards)
        if size_bytes + _SLACK_BYTES < wanted.size_bytes:
            raise CommandError(
                f"process {wanted.pid} came back with {size_bytes} of "
                f"{wanted.size_bytes} bytes of GPU memory"
            )


def _check_room(dumped: manifests.Container, placement: Placement, cards: Sequence[Card]) -> None:
    """FailedPreconditionError unless each card has as much free as its processes will take."""
    free = {card.uuid: card.free_bytes for card in cards}
    held = [memory for process in dumped.cuda for memory in process.devices]
    for old, uuid in placement.pairs:
        needed = sum(memory.size_bytes for memory in held if memory.uuid == old)
        if needed > free[uuid]:
            raise FailedPreconditionError(
                f"GPU {uuid} has {free[uuid] >> 20} MiB free, the checkpoint needs "
                f"{needed >> 20} MiB on it; free the card or use another"
            )


def lock(driver: Driver, pids: Sequence[int], *, deadline_s: float = _LOCK_DEADLINE_S) -> None:
    """Lock all, or none. Blocks until work that was submitted has ended.

    The first tries are short: in a collective one process may wait for another that is locked
    already, and only letting both run undoes that.
    """
    end = time.monotonic() + deadline_s
    try_ms = _FIRST_LOCK_TRY_MS
    while True:
        left_s = end - time.monotonic()
        timeout_ms = max(1, min(try_ms, int(left_s * 1000)))
        try_ms = min(2 * try_ms, _LOCK_TRY_MS)
        calls = [Call("lock", pid, timeout_ms=timeout_ms) for pid in pids]
        answers = gpu.perform(driver, calls, deadline_s=timeout_ms / 1000 + 5)
        bad = [(call, answer) for call, answer in zip(calls, answers, strict=True) if answer.code]
        if not bad:
            return
        revive(driver, pids)
        if time.monotonic() >= end or any(answer.code != NOT_READY for _, answer in bad):
            raise _failure(*bad[0])
        log.info("lock timed out, trying again", pids=",".join(str(call.pid) for call, _ in bad))


def checkpoint(driver: Driver, processes: Sequence[CudaProcess]) -> None:
    """Move the device memory of locked processes into their own, and their cards are free."""
    calls = [Call("checkpoint", process.pid) for process in processes]
    perform_all(driver, calls, size_bytes=max(process.size_bytes for process in processes))
    for process in processes:
        held = gpu.held_nodes(process.pid)
        if held:
            raise CommandError(
                f"process {process.pid} still holds {', '.join(held)} after its CUDA checkpoint"
            )


def restore(driver: Driver, pids: Sequence[int], pairs: Pairs, *, size_bytes: int) -> None:
    """Move memory back onto the cards, to those that *pairs* say; the processes stay locked.

    *size_bytes* is the most that one process has; it sets the deadline.
    """
    # Without a map every device is itself, which drivers before 580 can do too.
    real = () if all(old == new for old, new in pairs) else pairs
    calls = [Call("restore", pid, pairs=real) for pid in pids]
    perform_all(driver, calls, size_bytes=size_bytes)


def unlock(driver: Driver, pids: Sequence[int]) -> None:
    """Let locked processes run; CommandError unless the driver then says that they do."""
    batches = [[Call("unlock", pid), Call("state", pid)] for pid in pids]
    answers = driver.call(batches, deadline_s=_MOVE_DEADLINE_S)
    for pid, (unlocked, answer) in zip(pids, answers, strict=True):
        if unlocked.code != SUCCESS:
            raise _failure(Call("unlock", pid), unlocked)
        if answer != (SUCCESS, RUNNING):
            raise CommandError(f"process {pid} is {state_name(answer)} after its CUDA restore")


def revive_pids(token: str, pids: Sequence[int]) -> None:
    """As `revive`, by whoever finds a journal."""
    driver = gpu.find_driver(token)
    if driver is None:
        raise SourceLostError(f"source lost: no GPU driver to bring back processes {pids}")
    with closing(driver):
        revive(driver, pids)


def revive(driver: Driver, pids: Sequence[int]) -> None:
    """Bring back to running whatever a failed or killed operation left of *pids*.

    SourceLostError, with the driver's answer, for a process that cannot be brought back. Processes
    that have ended are no concern.
    """
    states = _settled(driver, pids)
    suspended = [pid for pid, state in states.items() if state == CHECKPOINTED]
    locked = [pid for pid, state in states.items() if state == LOCKED]
    try:
        calls = [Call("restore", pid) for pid in suspended]
        perform_all(driver, calls, size_bytes=_resident_bytes(suspended))
        unlock(driver, suspended + locked)
    except CommandError as error:
        raise SourceLostError(f"source lost: {error}") from None


def suspend_to_kill(token: str, pids: Sequence[int]) -> None:
    """Take the cards from processes that are about to be killed, as well as it can be done.

    Killing a process that was restored and runs can hang a node (NVIDIA/cuda-checkpoint#53).
    """
    driver = gpu.find_driver(token)
    if driver is None:
        return
    with closing(driver):
        living = gpu.users(pids)
        states = gpu.states(driver, living)
        running = [pid for pid in living if states[pid] == (SUCCESS, RUNNING)]
        for verb in ("lock", "checkpoint"):
            calls = [Call(verb, pid, timeout_ms=_LOCK_TRY_MS) for pid in running]
            answers = gpu.perform(driver, calls, deadline_s=_MOVE_DEADLINE_S)
            for call, answer in zip(calls, answers, strict=True):
                if answer.code != SUCCESS:
                    log.warning("not suspended before its end", reason=_failure(call, answer))


def state_name(answer: Answer) -> str:
    """``running``, or the driver's error."""
    if answer.code != SUCCESS:
        return error_name(answer.code)
    return STATES[answer.value] if answer.value < len(STATES) else f"in state {answer.value}"


def error_name(code: int) -> str:
    if code == gpu.OVERDUE.code:
        return "no answer within its deadline"
    if code == gpu.DIED.code:
        return "the calling process died"
    return f"{ERRORS.get(code, 'CUDA error')} ({code})"


def perform_all(driver: Driver, calls: Sequence[Call], *, size_bytes: int = 0) -> None:
    """All calls at the same time; CommandError for the first that failed, when all have ended."""
    deadline_s = _MOVE_DEADLINE_S + size_bytes / _SLOWEST_BYTES_PER_S
    answers = gpu.perform(driver, calls, deadline_s=deadline_s)
    for call, answer in zip(calls, answers, strict=True):
        if answer.code != SUCCESS:
            raise _failure(call, answer)


def _failure(call: Call, answer: Answer) -> CommandError:
    hint = _MANAGED if call.verb == "checkpoint" and answer.code == 801 else ""
    return CommandError(f"process {call.pid}: CUDA {call.verb}: {error_name(answer.code)}{hint}")


def _settled(driver: Driver, pids: Sequence[int]) -> dict[int, int]:
    """The states of the living, once no call is under way on any of them.

    The driver answers no question about a process while it works on it, or while it is frozen.
    """
    size_bytes = _resident_bytes([pid for pid in pids if os.path.exists(f"/proc/{pid}")])
    end = time.monotonic() + _SETTLE_DEADLINE_S + size_bytes / _SLOWEST_BYTES_PER_S
    while True:
        living = [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
        answers = _answers(driver, living)
        if all(a.code == SUCCESS and a.value in (0, 1, 2) for a in answers.values()):
            return {pid: answer.value for pid, answer in answers.items()}
        failed = [pid for pid, answer in answers.items() if answer == (SUCCESS, FAILED)]
        if failed or time.monotonic() > end:
            pid = failed[0] if failed else next(p for p, a in answers.items() if a[1] > 2 or a[0])
            raise SourceLostError(f"source lost: process {pid} is {state_name(answers[pid])}")
        time.sleep(_SETTLE_POLL_S)


def _answers(driver: Driver, pids: Sequence[int]) -> dict[int, Answer]:
    """The states, each asked for apart: one that gives no answer must not hide the others."""
    calls = [Call("state", pid) for pid in pids]
    answers = gpu.perform(driver, calls, deadline_s=_STATE_DEADLINE_S)
    return dict(zip(pids, answers, strict=True))


def _resident_bytes(pids: Sequence[int]) -> int:
    """The memory of the largest; a suspended process has its device memory among it."""
    sizes = [0]
    for pid in pids:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            sizes.append(int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE"))
    return max(sizes)
