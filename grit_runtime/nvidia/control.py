"""The driver's checkpoint calls on processes that a person names: single steps or all of them."""

from __future__ import annotations

from grit_runtime.errors import (
    CommandError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from grit_runtime.host import runc
from grit_runtime.host.containerd import Containerd
from grit_runtime.host.process import new_token
from grit_runtime.nvidia import driver_calls, gpu_driver, suspension, threads
from grit_runtime.nvidia.libcuda import CHECKPOINTED, LOCKED, RUNNING, SUCCESS, Call
from grit_runtime.pod import running_container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from grit_runtime.config import Config
    from grit_runtime.model.device_map import Pairs
    from grit_runtime.nvidia.gpu_driver import Driver

ACTIONS = ("lock", "checkpoint", "restore", "unlock")


def require_driver() -> Driver:
    driver = gpu_driver.find_driver(new_token())
    if driver is None:
        raise NotFoundError(
            "no NVIDIA driver: libcuda.so.1 and libnvidia-ml.so.1 were not found; set driver_dir "
            "in /etc/grit/config.toml"
        )
    return driver


def pids_of(driver: Driver, targets: Sequence[str], config: Config) -> list[int]:
    """The CUDA processes of *targets*: pids, container ids, sandbox ids or NAMESPACE/POD."""
    pids = {int(target) for target in targets if target.isdigit()}
    named = [target for target in targets if not target.isdigit()]
    if named:
        tool = runc.installed(config.runc_root, new_token())
        with Containerd(config.containerd_address) as containerd:
            containers = [c for target in named for c in containerd.find(target).running]
        for container in containers:
            inside = running_container.read(tool, container.name, container.id).pids()
            pids |= {process.pid for process in gpu_driver.processes(driver, inside, [])}
    if not pids:
        raise NotFoundError(f"{' '.join(targets)}: no CUDA process there")
    return sorted(pids)


def state(driver: Driver, pid: int) -> str:
    """``running``, ``locked``, ``checkpointed``, ``failed``; NotFoundError for no CUDA process."""
    answer = gpu_driver.states(driver, [pid])[pid]
    if answer.code != SUCCESS:
        raise NotFoundError(
            f"process {pid}: {driver_calls.error_name(answer.code)}; is it running and does it use "
            "CUDA?"
        )
    return driver_calls.state_name(answer)


def restore_tid(driver: Driver, pid: int) -> int:
    [answer] = gpu_driver.perform(driver, [Call("restore-tid", pid)], deadline_s=20)
    if answer.code != SUCCESS:
        raise CommandError(f"process {pid}: restore-tid: {driver_calls.error_name(answer.code)}")
    return answer.value


def act(
    driver: Driver, verb: str, pids: Sequence[int], *, timeout_ms: int, device_map: str
) -> None:
    """Take one step on all *pids* at the same time. A lock that fails for one is undone for all."""
    for pid in pids:
        state(driver, pid)
    pairs = _pairs(device_map)
    if verb == "lock":
        with suspension.telling_of_the_dead(pids, verb):
            driver_calls.lock(driver, pids, deadline_s=timeout_ms / 1000)
        _keep_locked(driver, pids)
    elif verb == "checkpoint":
        _expect(driver, pids, LOCKED, verb)
        calls = [Call("checkpoint", pid) for pid in pids]
        _keep(driver, pids)
        with suspension.telling_of_the_dead(pids, verb):
            driver_calls.perform_all(driver, calls, size_bytes=_largest_card_bytes(driver))
    elif verb == "restore":
        _expect(driver, pids, CHECKPOINTED, verb)
        calls = [Call("restore", pid, pairs=pairs) for pid in pids]
        _keep(driver, pids)
        driver_calls.perform_all(driver, calls, size_bytes=_largest_card_bytes(driver))
    else:
        _expect(driver, pids, LOCKED, verb)
        driver_calls.unlock(driver, pids)
        threads.let_go(pids)


def _keep_locked(driver: Driver, pids: Sequence[int]) -> None:
    try:
        threads.keep(driver, pids).close()
    except BaseException:
        driver_calls.bring_back(driver, pids)
        raise


def _keep(driver: Driver, pids: Sequence[int]) -> None:
    """Hold the threads until the unlock, of processes that somebody else has suspended too."""
    if free := threads.unkept(pids):
        threads.keep(driver, free).close()


def suspend(driver: Driver, pids: Sequence[int], *, timeout_ms: int) -> None:
    """Lock and checkpoint *pids*; if a checkpoint fails, all run again."""
    act(driver, "lock", pids, timeout_ms=timeout_ms, device_map="")
    try:
        act(driver, "checkpoint", pids, timeout_ms=timeout_ms, device_map="")
    except BaseException:
        suspension.bring_back_running(driver, pids)
        raise


def resume(driver: Driver, pids: Sequence[int], *, device_map: str) -> None:
    """Restore and unlock."""
    act(driver, "restore", pids, timeout_ms=0, device_map=device_map)
    act(driver, "unlock", pids, timeout_ms=0, device_map="")


def toggle(driver: Driver, pids: Sequence[int], *, timeout_ms: int, device_map: str) -> None:
    """Suspend those that run, resume those that are suspended."""
    running = [pid for pid in pids if state(driver, pid) == "running"]
    suspended = [pid for pid in pids if state(driver, pid) == "checkpointed"]
    if running:
        suspend(driver, running, timeout_ms=timeout_ms)
    if suspended:
        resume(driver, suspended, device_map=device_map)


def listing(driver: Driver) -> list[str]:
    """Lines that show the node's cards and the processes on them."""
    version, cards = gpu_driver.cards(driver)
    lines = [f"driver {version}"]
    for card in cards:
        free, total = card.free_bytes >> 20, card.total_bytes >> 20
        mig = ", MIG" if card.mig else ""
        lines.append(
            f"{card.uuid} {card.model} minor {card.minor}: {free} of {total} MiB free{mig}"
        )
        lines += [f"  {pid}: {used >> 20} MiB" for pid, used in sorted(card.used_bytes.items())]
    return lines


def _largest_card_bytes(driver: Driver) -> int:
    return max((card.total_bytes for card in gpu_driver.cards(driver)[1]), default=0)


def _expect(driver: Driver, pids: Sequence[int], expected: int, verb: str) -> None:
    names = {RUNNING: "running", LOCKED: "locked", CHECKPOINTED: "checkpointed"}
    for pid in pids:
        actual = state(driver, pid)
        if actual != names[expected]:
            raise FailedPreconditionError(
                f"process {pid} is {actual}, {verb} expects {names[expected]}"
            )


def _pairs(text: str) -> Pairs:
    if not text:
        return ()
    pairs = [tuple(part.split("=")) for part in text.split(",")]
    for pair in pairs:
        if len(pair) != 2:
            raise InvalidArgumentError(f"device map {text!r}: expected OLDUUID=NEWUUID,...")
    return tuple((old, new) for old, new in pairs)
