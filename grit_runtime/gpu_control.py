"""The driver's checkpoint calls on processes that a person names, one step or the whole way."""

from __future__ import annotations

from grit_runtime import gpu as engine
from grit_runtime.errors import (
    CommandError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from grit_runtime.host import cgroup, gpu, runc
from grit_runtime.host.containerd import Containerd
from grit_runtime.host.cuda import CHECKPOINTED, LOCKED, RUNNING, SUCCESS, Call
from grit_runtime.host.process import new_token
from grit_runtime.host.runc import Runc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from grit_runtime.config import Config
    from grit_runtime.host.gpu import Driver
    from grit_runtime.model.device_map import Pairs

ACTIONS = ("lock", "checkpoint", "restore", "unlock")


def require_driver() -> Driver:
    driver = gpu.find_driver(new_token())
    if driver is None:
        raise NotFoundError(
            "no NVIDIA driver: libcuda.so.1 and libnvidia-ml.so.1 were not found; set driver_dir "
            "in /etc/grit/config.toml"
        )
    return driver


def pids_of(driver: Driver, targets: Sequence[str], config: Config) -> list[int]:
    """The CUDA processes that pids, container ids, sandbox ids or NAMESPACE/POD mean."""
    pids = {int(target) for target in targets if target.isdigit()}
    named = [target for target in targets if not target.isdigit()]
    if named:
        tool = Runc("runc", ("--root", config.runc_root), new_token())
        with Containerd(config.containerd_address) as containerd:
            found = [c for target in named for c in containerd.find(target).containers]
        for container in found:
            if container.state == "running":
                init_pid = runc.state(tool, container.id).pid
                inside = cgroup.pids(cgroup.of(init_pid))
                pids |= {process.pid for process in gpu.processes(driver, inside, [])}
    if not pids:
        raise NotFoundError(f"{' '.join(targets)}: no CUDA process there")
    return sorted(pids)


def state(driver: Driver, pid: int) -> str:
    """``running``, ``locked``, ``checkpointed``, ``failed``; NotFoundError for no CUDA process."""
    answer = gpu.states(driver, [pid])[pid]
    if answer.code != SUCCESS:
        raise NotFoundError(
            f"process {pid}: {engine.error_name(answer.code)}; is it running and does it use CUDA?"
        )
    return engine.state_name(answer)


def restore_tid(driver: Driver, pid: int) -> int:
    [answer] = gpu.perform(driver, [Call("restore-tid", pid)], deadline_s=20)
    if answer.code != SUCCESS:
        raise CommandError(f"process {pid}: restore-tid: {engine.error_name(answer.code)}")
    return answer.value


def act(
    driver: Driver, verb: str, pids: Sequence[int], *, timeout_ms: int, device_map: str
) -> None:
    """One step on all of *pids* at the same time. A lock that fails for one is undone for all."""
    for pid in pids:
        state(driver, pid)
    pairs = _pairs(device_map)
    if verb == "lock":
        engine.lock(driver, pids, deadline_s=timeout_ms / 1000)
    elif verb == "checkpoint":
        _expect(driver, pids, LOCKED, verb)
        calls = [Call("checkpoint", pid) for pid in pids]
        engine.perform_all(driver, calls, size_bytes=_largest_card_bytes(driver))
    elif verb == "restore":
        _expect(driver, pids, CHECKPOINTED, verb)
        calls = [Call("restore", pid, pairs=pairs) for pid in pids]
        engine.perform_all(driver, calls, size_bytes=_largest_card_bytes(driver))
    else:
        _expect(driver, pids, LOCKED, verb)
        engine.unlock(driver, pids)


def suspend(driver: Driver, pids: Sequence[int], *, timeout_ms: int) -> None:
    """Lock and checkpoint; if a checkpoint fails, all run again."""
    act(driver, "lock", pids, timeout_ms=timeout_ms, device_map="")
    try:
        act(driver, "checkpoint", pids, timeout_ms=timeout_ms, device_map="")
    except BaseException:
        engine.revive(driver, pids)
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
    """Lines that show the node's cards and who is on them."""
    version, cards = gpu.cards(driver)
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
    return max((card.total_bytes for card in gpu.cards(driver)[1]), default=0)


def _expect(driver: Driver, pids: Sequence[int], wanted: int, verb: str) -> None:
    names = {RUNNING: "running", LOCKED: "locked", CHECKPOINTED: "checkpointed"}
    for pid in pids:
        found = state(driver, pid)
        if found != names[wanted]:
            raise FailedPreconditionError(
                f"process {pid} is {found}, {verb} expects {names[wanted]}"
            )


def _pairs(text: str) -> Pairs:
    if not text:
        return ()
    pairs = [tuple(part.split("=")) for part in text.split(",")]
    for pair in pairs:
        if len(pair) != 2:
            raise InvalidArgumentError(f"device map {text!r}: expected OLDUUID=NEWUUID,...")
    return tuple((old, new) for old, new in pairs)
