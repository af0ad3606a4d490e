"""The cases of one group on this machine, as `run` starts them.

usage: run GROUP OUT [--cpu] [--small-pages] [--no-disk] [CASE...]

GROUP is smoke, single (one card), frameworks (one card, each moved twice), pair (two cards), bench
(one card, beside the same steps by hand, in turns), nodes (two cards, each on a node of its own) or
stand-in (what makes sense without a card).
CASEs, if named, are the only ones. With --cpu, workloads compute on the processor; with
--small-pages, grit is configured to leave huge pages as they are, and nothing is done by hand. With
--no-disk, checkpoints lie in memory on both nodes, and nothing is done by hand.
Writes into the directory OUT: smoke.json or results.json, and the logs of what failed.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from integration.gpu import across, agent, by_hand, cases, driver, memory_rate, pods
from integration.gpu.cases import Room
from integration.gpu.machine import Machine
from integration.gpu.neighbour import Neighbour
from integration.gpu.results import FAILED, SKIPPED, Outcome, Results
from integration.gpu.smoke import FAILURES, Smoke

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.gpu.cases import Case

# A run as a whole, and what a case needs at least: a start of PyTorch on both sides, and so much
# for each GiB that goes through the driver, CRIU and the disk.
RUN_S = 530
CASE_S = 30
GIB_S = 3.5


CPU, SMALL_PAGES, NO_DISK = "--cpu", "--small-pages", "--no-disk"
CONFIG = Path("/etc/grit/config.toml")
GRIT, WITH_SMALL, WITHOUT_DISK = "grit", "grit, small pages", "grit, into memory"
BY_HAND = "by hand"
THE_MACHINE = "the machine alone"


class Plan(NamedTuple):
    """A case of a group, and what it is expected to take."""

    name: str
    case: Case
    gib: float | None = None
    way: str = GRIT
    needs_gpu: bool = True

    @property
    def expected_s(self) -> float:
        """Seconds, on the safe side."""
        return CASE_S + GIB_S * (self.gib or 0)


def tensors(gib: float) -> Plan:
    return Plan(f"tensors {gib:g} GiB", cases.tensors(gib), gib, needs_gpu=False)


def by_hands(gib: float) -> Plan:
    return Plan(f"tensors {gib:g} GiB", by_hand.tensors(gib), gib, BY_HAND, needs_gpu=False)


def in_turns(gib: float) -> tuple[Plan, ...]:
    """Three pairs; who is first, and meets memory that the machine has not used yet, changes."""
    ours, theirs = tensors(gib), by_hands(gib)
    return theirs, ours, ours, theirs, theirs, ours


def held_frozen(cards: int) -> Plan:
    """A process on each card; the checkpoint waits for no disk, and so shows what memory takes."""
    numbers = tuple(range(cards))
    case = cases.tensors(8, processes=cards, source=numbers, target=numbers, after="frozen")
    name = "one card, held frozen" if cards == 1 else "two processes, two cards, held frozen"
    return Plan(name, case, 8 * cards)


def large_held_frozen() -> Plan:
    return Plan("32 GiB, held frozen", cases.tensors(32, after="frozen"), 32)


def machine_alone(gib: int) -> Plan:
    return Plan(f"{gib} GiB into new memory", memory_rate.filling(gib), gib, THE_MACHINE)


def refused(name: str, job: cases.Job, card_numbers: tuple[int, ...], *words: str) -> Plan:
    return Plan(name, cases.refused(job, card_numbers, *words))


UNSAFE_RANKS = cases.Job("ranks-unsafe", ("two_ranks",), needs_shm=True)
HALF_SAFE_RANKS = cases.Job("ranks-half", ("two_ranks",), env=cases.SAFE_NCCL[:1], needs_shm=True)

# XLA chooses kernels by timing them, unless told not to.
SAME_KERNELS = ("XLA_FLAGS", "--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0")


def jax(name: str, *env: tuple[str, str]) -> Plan:
    job = cases.Job(f"jax-{name.replace(', ', '-').lower()}", ("jax_training",))
    job = job._replace(env=(SAME_KERNELS, *env))
    return Plan(f"JAX, {name}", cases.steps_twice(job))


def framework(name: str, program: str, **job: object) -> Plan:
    made = cases.Job(program.replace("_", "-"), (program,))._replace(**job)  # type: ignore[arg-type]
    return Plan(name, cases.steps_twice(made))


# Triton asks ldconfig, which is not in the container; and there are several CUDA processes.
FOR_TRITON = (("TRITON_LIBCUDA_PATH", str(driver.library_dir())), *cases.SAFE_NCCL)
WITHOUT_LIBUV = ("USE_LIBUV", "0")  # it has an io_uring where no seccomp profile denies that
WITHOUT_POOL = ("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
ALLOCATOR = "XLA_PYTHON_CLIENT_ALLOCATOR"
SMALL_POOL = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.05")

GROUPS = {
    "frameworks": (
        jax("BFC", WITHOUT_POOL),
        jax("BFC, preallocated", SMALL_POOL),
        jax("platform", (ALLOCATOR, "platform")),
        jax("cuda_async", (ALLOCATOR, "cuda_async"), SMALL_POOL),
        framework("DataLoader with workers", "loader_training"),
        framework("CuPy with its pool", "cupy_pool"),
        framework("transformers, KV cache", "decoding"),
        framework("torch.compile and Triton", "compiled", env=FOR_TRITON),
        framework(
            "torch.distributed on one card",
            "ranks_on_one_card",
            env=(WITHOUT_LIBUV, *cases.SAFE_NCCL),
            annotations=cases.ASKS_FOR_CONNECTIONS,
        ),
        framework("a child that uses the card", "child"),
        Plan(
            "inside a wait for a long kernel",
            cases.steps_twice(cases.Job("long-kernel", ("long_kernel",)), count=24, pace_s=0),
        ),
    ),
    "single": (
        tensors(1),
        Plan("training", cases.training, needs_gpu=False),
        Plan("streams, events, graph, pinned memory, cuBLAS, cuDNN", cases.features),
        Plan("3 processes", cases.tensors(2, processes=3), 6, needs_gpu=False),
        refused("managed memory", cases.Job("managed", ("managed",)), (0,), "managed"),
        tensors(8),
        tensors(32),
    ),
    "pair": (
        Plan("one card", cases.tensors(8), 8, needs_gpu=False),
        Plan(
            "two processes, two cards",
            cases.tensors(8, processes=2, source=(0, 1), target=(0, 1)),
            16,
        ),
        *(held_frozen(cards) for cards in (2, 1, 1, 2)),
        Plan("from card 0 to card 1", cases.tensors(4, target=(1,)), 4),
        Plan(
            "from cards 0 1 to cards 1 0",
            cases.tensors(2, processes=2, source=(0, 1), target=(1, 0)),
            4,
        ),
        refused("NCCL as it is", UNSAFE_RANKS, (0, 1), "NCCL_P2P_DISABLE", "NCCL_CUMEM_ENABLE"),
        refused("NCCL half safe", HALF_SAFE_RANKS, (0, 1), "NCCL_CUMEM_ENABLE"),
        Plan("NCCL, safe, in place", cases.two_ranks_in_place),
        Plan("NCCL, safe", cases.two_ranks(injected=False)),
        Plan("NCCL, made safe by annotation", cases.two_ranks(injected=True)),
    ),
    "bench": (
        *in_turns(1),
        *in_turns(8),
        *(by_hands(32), tensors(32)),
        large_held_frozen(),
        machine_alone(32),
    ),
    "stand-in": (
        tensors(0.1),
        by_hands(0.1),
        Plan("training", cases.training, needs_gpu=False),
        Plan("3 processes", cases.tensors(0.05, processes=3), needs_gpu=False),
    ),
}


def across_nodes(other: Neighbour) -> tuple[Plan, ...]:
    """A pod that moves to another node, and the same by hand."""
    return tuple(
        Plan(f"{gib} GiB to another node", case, gib, way, needs_gpu=False)
        for gib in (8, 32)
        for case, way in ((across.tensors(gib, other), GRIT), (across.by_hands(gib), BY_HAND))
    )


def main() -> None:
    options = {word for word in sys.argv[1:] if word.startswith("-")}
    words = [word for word in sys.argv[1:] if word not in options]
    groups = {"smoke", "nodes", *GROUPS}
    if len(words) < 2 or words[0] not in groups or options - {CPU, SMALL_PAGES, NO_DISK}:
        sys.exit(f"{__doc__}")
    group, out, chosen = words[0], Path(words[1]), words[2:]
    on_gpu = CPU not in options
    out.mkdir(parents=True, exist_ok=True)
    library_dir = driver.library_dir()
    library_dirs = [library_dir] if library_dir else []
    deadline = time.monotonic() + RUN_S
    with ExitStack() as stack:
        other = None
        has_disk = NO_DISK not in options
        if group == "nodes":
            other = stack.enter_context(Neighbour(library_dirs, on_gpu=on_gpu, has_disk=has_disk))
        machine = stack.enter_context(Machine(library_dirs=library_dirs, has_disk=has_disk))
        if group == "smoke":
            all_well = run_smoke(machine, out, chosen, on_gpu=on_gpu)
        else:
            room = Room(machine, pods.machinery(machine, on_gpu=on_gpu))
            if other:
                stack.enter_context(agent.running(machine, "node-a"))
                other.ask("begin")
            every = across_nodes(other) if other else GROUPS[group]
            plans = [plan for plan in every if on_gpu or not plan.needs_gpu]
            plans = [plan for plan in plans if not chosen or plan.name in chosen]
            if not on_gpu:
                plans = [plan._replace(name=f"{plan.name}, CPU memory") for plan in plans]
            if SMALL_PAGES in options:
                CONFIG.write_text("huge_pages = false\n")
                plans = [plan._replace(way=WITH_SMALL) for plan in plans if plan.way == GRIT]
            if NO_DISK in options:
                plans = [plan._replace(way=WITHOUT_DISK) for plan in plans if plan.way == GRIT]
            all_well = run_plans(room, plans, out, deadline=deadline)
    sys.exit(not all_well)


def run_smoke(machine: Machine, out: Path, chosen: list[str], *, on_gpu: bool) -> bool:
    checks = Smoke(machine, chosen, on_gpu=on_gpu)
    checks.run()
    (out / "smoke.json").write_text(json.dumps(checks.outcomes, indent=1))
    all_well = not any(outcome["failure"] for outcome in checks.outcomes)
    if not all_well:
        (out / "logs.txt").write_text(machine.collect_logs())
    return all_well


def run_plans(room: Room, plans: list[Plan], out: Path, *, deadline: float) -> bool:
    """Run *plans* one after the other, whatever comes of each; whether all went well."""
    results = Results(out / "results.json")
    all_well = True
    for plan in plans:
        if time.monotonic() + plan.expected_s > deadline:
            outcome = Outcome(SKIPPED, {})
        else:
            outcome = run_case(room, plan, out)
        results.add(plan.name, plan.way, plan.gib, outcome)
        all_well &= outcome.outcome not in {FAILED, SKIPPED} and outcome.digests_equal is not False
    return all_well


def run_case(room: Room, plan: Plan, out: Path) -> Outcome:
    try:
        return plan.case(room)
    except FAILURES as error:
        with (out / "logs.txt").open("a") as file:
            file.write(f"==== {plan.name} ({plan.way})\n{error}\n{room.machine.collect_logs()}\n")
        room.machine.end_pods()
        return Outcome(FAILED, {}, note=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
