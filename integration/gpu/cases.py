"""What is done with real cards: pods that move, and pods that must not."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple, TypeVar

from integration.gpu import driver, logs, migration, pods
from integration.gpu.results import IN_PLACE, REFUSED, VERIFIED, Outcome
from integration.pods import kubelet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from integration.gpu.machine import Machine
    from integration.gpu.pods import Machinery
    from integration.pods.kubelet import Pod
    from integration.pods.pod_spec import PodSpec

    Case = Callable[["Room"], Outcome]
    Pairs = tuple[tuple[str, str], ...]

T = TypeVar("T")

TRAINING_STEPS = 150
TRAINING_CUT = 40
TRAINING_PACE_S = 0.05
DIGEST_S = 120
LINGERS_S = 90

# What several processes need, if one of them may use NCCL.
SAFE_NCCL = (("NCCL_P2P_DISABLE", "1"), ("NCCL_CUMEM_ENABLE", "0"))
ASKS_FOR_SAFE_NCCL = (("grit.dev/nccl", "checkpointable"),)
ASKS_FOR_CONNECTIONS = (("grit.dev/tcp", "established"),)  # of the ranks with each other, on lo


class Room(NamedTuple):
    """Where cases run."""

    machine: Machine
    machinery: Machinery

    def spec(self, job: Job, cards: Sequence[int], annotations: Pairs = ()) -> PodSpec:
        """A pod that does *job* on the cards of these numbers."""
        nodes = pods.cards() if self.machinery.on_gpu else []
        program, *arguments = job.program
        spec = pods.python_pod(
            job.name,
            ("-m", f"{pods.WORKLOADS}.{program}", *arguments),
            self.machinery,
            devices=[nodes[card] for card in cards] if nodes else (),
            env=job.env,
            annotations=(*job.annotations, *annotations),
        )
        return pods.with_large_shm(spec) if job.needs_shm else spec


class Job(NamedTuple):
    """A workload, and the pod it runs in. NCCL's transports take more than a sandbox's /dev/shm."""

    name: str
    program: tuple[str, ...]
    env: Pairs = ()
    annotations: Pairs = ()
    needs_shm: bool = False


class Held(NamedTuple):
    """What processes said of their tensors: how far each has counted, and every digest."""

    counted: dict[str, int]
    digests: dict[str, str]


def tensors(
    gib: float,
    *,
    processes: int = 1,
    source: Sequence[int] = (0,),
    target: Sequence[int] = (0,),
    after: str = "stopped",
) -> Case:
    """Processes that hold *gib* of tensors each, which are digested on both sides."""
    job = Job(
        f"tensors-{gib:g}-{processes}".replace(".", "-"),
        ("tensors", str(gib), str(processes)),
        env=SAFE_NCCL if processes > 1 else (),
    )

    def settle(pod: Pod) -> Held:
        said = logs.wait(
            pod, lambda said: min_count(said, processes) >= 3, timeout_s=logs.STARTED_S
        )
        digests = ask_digests(pod, processes)
        return Held({rank: counts[-1] for rank, counts in counted(said).items()}, digests)

    def verify(pod: Pod, held: Held) -> bool:
        past = max(held.counted.values()) + 5
        logs.wait(pod, lambda said: min_count(said, processes) > past, timeout_s=60)
        digests = ask_digests(pod, processes)
        said = logs.lines(pod)
        for rank, counts in counted(said).items():
            assert counts == list(range(1, len(counts) + 1)), f"rank {rank} counted {counts}"
        assert len(sums(said)) == processes, f"sums changed: {sums(said)}"
        return digests == held.digests

    return lambda room: move(room, job, source, target, settle, verify, after=after)


def training(room: Room) -> Outcome:
    """A training run that is moved, beside one that is left alone."""
    whole = Job("undisturbed", ("training", str(TRAINING_STEPS), "0"))
    with kubelet.running(room.machine, room.spec(whole, (0,))) as pod:
        undisturbed = wait_for_parameters(pod, timeout_s=logs.STARTED_S)
    job = Job("training", ("training", str(TRAINING_STEPS), str(TRAINING_PACE_S)))

    def settle(pod: Pod) -> None:
        said = wait_for_steps(pod, TRAINING_CUT)
        assert len(steps(said)) < TRAINING_STEPS, "it was too fast to be interrupted"

    def verify(pod: Pod, _: None) -> bool:
        moved = wait_for_parameters(pod, timeout_s=60)
        for ours, theirs in zip(moved, undisturbed, strict=False):
            if ours != theirs:
                print(f"    first difference: {ours!r}, undisturbed {theirs!r}", flush=True)
                break
        return moved == undisturbed

    return move(room, job, (0,), (0,), settle, verify)


def steps_twice(job: Job, *, count: int = 120, pace_s: float = 0.1) -> Case:
    """A program of steps that is moved, and moved again, beside one that is left alone."""
    cuts = count // 4, count // 2

    def run(room: Room) -> Outcome:
        begun = time.monotonic()
        undisturbed = _left_alone(room, job, count)
        names = [f"{job.name}-{hop}" for hop in (1, 2)]
        moved = job._replace(program=(*job.program, str(count), str(pace_s)))
        try:
            with kubelet.running(room.machine, room.spec(moved, (0,))) as pod:
                assert len(steps(wait_for_steps(pod, cuts[0]))) < count, "it was too fast"
                taken = migration.take(pod, names[0])
            wait_until_nothing_lingers()
            with kubelet.sandbox(
                room.machine, room.spec(moved, (0,), migration.asking_for(names[0]))
            ) as pod:
                pod.run_containers()
                restored = migration.restored(pod)
                assert len(steps(wait_for_steps(pod, cuts[1]))) < count, "it was too fast"
                migration.take(pod, names[1])
            wait_until_nothing_lingers()
            with kubelet.sandbox(
                room.machine, room.spec(moved, (0,), migration.asking_for(names[1]))
            ) as pod:
                pod.run_containers()
                said = wait_for_parameters(pod, timeout_s=60)
        finally:
            for name in names:
                migration.forget(name)
        seconds = {f"checkpoint {phase}": value for phase, value in taken.items()}
        seconds |= {f"restore {phase}": value for phase, value in restored.items()}
        seconds |= {"whole case": time.monotonic() - begun}
        note = _first_difference(said, undisturbed)
        return Outcome(VERIFIED, seconds, said == undisturbed, note)

    return run


def _left_alone(room: Room, job: Job, count: int) -> list[str]:
    whole = job._replace(name=f"{job.name}-alone", program=(*job.program, str(count), "0"))
    with kubelet.running(room.machine, room.spec(whole, (0,))) as pod:
        return wait_for_parameters(pod, timeout_s=logs.STARTED_S)


def _first_difference(ours: list[str], theirs: list[str]) -> str | None:
    for our, their in zip(ours, theirs, strict=False):
        if our != their:
            return f"first difference: {our!r}, undisturbed {their!r}"
    return None


def features(room: Room) -> Outcome:
    """Streams, events that are pending, a graph, pinned memory and library handles."""

    def settle(pod: Pod) -> None:
        logs.wait(
            pod,
            lambda said: len(steps(said)) >= 5 and steps(said)[-1].endswith("pending=True"),
            timeout_s=logs.STARTED_S,
        )

    def verify(pod: Pod, _: None) -> bool:
        assert_consecutive(logs.wait_for_more(pod, 20))
        return not any("wrong" in line for line in logs.lines(pod))

    return move(room, Job("features", ("features",)), (0,), (0,), settle, verify)


def two_ranks(*, injected: bool) -> Case:
    """Two ranks with the NCCL environment that survives, from their pod's spec or from us."""
    job = safe_ranks(injected=injected)
    return lambda room: move(room, job, (0, 1), (0, 1), lambda pod: wait_for_steps(pod, 5), goes_on)


def two_ranks_in_place(room: Room) -> Outcome:
    """The same two ranks, whose cards are freed for a while under the living pod."""
    with kubelet.running(room.machine, room.spec(safe_ranks(injected=False), (0, 1))) as pod:
        wait_for_steps(pod, 5)
        target = f"{pod.spec.namespace}/{pod.spec.name}"
        seconds = {
            "suspend": timed(room, "grit", "checkpoint", target, "--stage", "gpu"),
            "resume": timed(room, "grit", "gpu", "restore", target),
        }
        goes_on(pod, None)
    return Outcome(IN_PLACE, seconds)


def refused(job: Job, cards: Sequence[int], *words: str) -> Case:
    """A checkpoint that must be refused, with these *words*, while the source goes on."""

    def run(room: Room) -> Outcome:
        with kubelet.running(room.machine, room.spec(job, cards)) as pod:
            wait_for_steps(pod, 5)
            begin = time.monotonic()
            reason = migration.refusal(pod, job.name)
            seconds = {"refusal": time.monotonic() - begin}
            missing = [word for word in words if word not in reason]
            assert missing == [], f"the reason does not say {missing}: {reason}"
            goes_on(pod, None)
            processes = migration.processes(pod)
            states = {answer.value for answer in driver.call("state", processes)}
            assert states == {0}, f"states after the refusal: {states}"
        return Outcome(REFUSED, seconds, note=reason)

    return run


def safe_ranks(*, injected: bool) -> Job:
    job = Job("ranks", ("two_ranks",), annotations=ASKS_FOR_CONNECTIONS, needs_shm=True)
    if injected:
        return job._replace(annotations=(*job.annotations, *ASKS_FOR_SAFE_NCCL))
    return job._replace(env=SAFE_NCCL)


def wait_for_steps(pod: Pod, count: int) -> list[str]:
    return logs.wait(pod, lambda said: len(steps(said)) >= count, timeout_s=logs.STARTED_S)


def goes_on(pod: Pod, _: object) -> None:
    """The steps of *pod* go on, each once."""
    assert_consecutive(logs.wait_for_more(pod, 10))


def assert_consecutive(said: list[str]) -> None:
    numbers = [int(line.split()[0]) for line in steps(said)]
    assert numbers == list(range(1, len(numbers) + 1)), f"steps {numbers}"


def move(
    room: Room,
    job: Job,
    source: Sequence[int],
    target: Sequence[int],
    settle: Callable[[Pod], T],
    verify: Callable[[Pod, T], bool | None],
    *,
    after: str = "stopped",
) -> Outcome:
    """Run *job* until it has settled, checkpoint and end it, restore it in a new pod, verify."""
    try:
        with kubelet.running(room.machine, room.spec(job, source)) as pod:
            settled = settle(pod)
            begin = time.monotonic()
            taken = migration.take(pod, job.name, after=after)
        wait_until_nothing_lingers()
        asking = migration.asking_for(job.name)
        with kubelet.sandbox(room.machine, room.spec(job, target, asking)) as pod:
            created = time.monotonic()
            pod.run_containers()
            started_s = time.monotonic() - created
            restored = migration.restored(pod)
            logs.wait_for_more(pod, 1)
            away_s = time.monotonic() - begin
            equal = verify(pod, settled)
    finally:
        migration.forget(job.name)
    seconds = {f"checkpoint {phase}": value for phase, value in taken.items()}
    seconds |= {f"restore {phase}": value for phase, value in restored.items()}
    seconds |= {"start": started_s, "away": away_s}
    return Outcome(VERIFIED, seconds, equal)


def wait_until_nothing_lingers() -> None:
    """Ports of ended connections are free again: source and target share the machine's network."""
    deadline = time.monotonic() + LINGERS_S
    while " 06 " in Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text():
        assert time.monotonic() < deadline, "connections linger in TIME_WAIT"
        time.sleep(1)


def ask_digests(pod: Pod, processes: int) -> dict[str, str]:
    """The digest of each process's tensors, computed now."""
    before = len(digests(logs.lines(pod)))
    pod.exec_sync(pods.CONTAINER, ["/bin/kill", "-USR1", "1"])
    said = logs.wait(pod, lambda said: len(digests(said)) >= before + processes, timeout_s=DIGEST_S)
    found = dict(line.split()[1:] for line in digests(said)[before:])
    assert len(found) == processes, f"digests of ranks {sorted(found)}"
    return found


def digests(said: list[str]) -> list[str]:
    return [line for line in said if line.startswith("digest ")]


def steps(said: list[str]) -> list[str]:
    """The lines that a workload has numbered; a library's warnings may be among the others."""
    return [line for line in said if line.split(" ")[0].isdigit()]


def counted(said: list[str]) -> dict[str, list[int]]:
    """What each rank has counted, in order."""
    counts: dict[str, list[int]] = {}
    for line in steps(said):
        rank, count, _ = line.split()
        counts.setdefault(rank, []).append(int(count))
    return counts


def min_count(said: list[str], processes: int) -> int:
    """How far the slowest of all processes has counted."""
    counts = counted(said)
    return min(map(len, counts.values())) if len(counts) == processes else 0


def sums(said: list[str]) -> set[tuple[str, str]]:
    """The different sums of each rank; one a rank if nothing has changed."""
    words = (line.split() for line in steps(said))
    return {(rank, check) for rank, _, check in words}


def wait_for_parameters(pod: Pod, *, timeout_s: float) -> list[str]:
    """All that a training run has said, the digest of its parameters last."""
    said = logs.wait(
        pod,
        lambda said: any(line.startswith("parameters ") for line in said),
        timeout_s=timeout_s,
    )
    return [*steps(said), next(line for line in said if line.startswith("parameters "))]


def timed(room: Room, *argv: str) -> float:
    begin = time.monotonic()
    room.machine.run(argv, timeout_s=migration.TIMEOUT_S)
    return time.monotonic() - begin
