"""The downtime of a pod that moves from one node to another, and its parts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from integration.gpu import by_hand, cases, link, logs, migration, neighbour
from integration.gpu.results import VERIFIED, Outcome
from integration.pods import kubelet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.gpu.cases import Case, Room
    from integration.gpu.neighbour import Neighbour


def tensors(gib: float, other: Neighbour) -> Case:
    """A process on card 0 goes to card 1 of the other node: from its last step to the next.

    The other node begins as soon as the checkpoint is sealed.
    """
    job = cases.Job(f"across-{gib:g}".replace(".", "-"), ("tensors", str(gib), "1"))

    def run(room: Room) -> Outcome:
        directory = migration.directory(job.name)
        try:
            with kubelet.running(room.machine, room.spec(job, (0,))) as pod:
                logs.wait(pod, lambda said: cases.min_count(said, 1) >= 3, timeout_s=logs.STARTED_S)
                before = cases.ask_digests(pod, 1)
                logs.wait_for_more(pod, 1)
                with ThreadPoolExecutor() as threads:
                    taking = threads.submit(migration.take, pod, job.name, after="frozen")
                    migration.wait_for(job.name, taking)
                    last = neighbour.last_step(pod)
                    restored, first, after = other.ask(job, (1,), job.name, last)
                    taken = taking.result()
                link_s = link.send(directory, None, neighbour.THEIRS)
        finally:
            migration.forget(job.name)
        seconds = {f"checkpoint {phase}": value for phase, value in taken.items()}
        seconds |= {"link alone": link_s, **restored, "downtime": first - last}
        return Outcome(VERIFIED, seconds, before == after)

    return run


def by_hands(gib: float) -> Case:
    """The same by hand, the images copied to the other node and restored where they came from."""

    def copy(_: Room) -> dict[str, float]:
        return {"copy": link.send(by_hand.IMAGES, str(by_hand.IMAGES), neighbour.THEIRS)}

    def run(room: Room) -> Outcome:
        outcome = by_hand.tensors(gib, then=copy)(room)
        seconds = outcome.seconds
        downtime = seconds["checkpoint all"] + seconds["copy"] + seconds["start"]
        return outcome._replace(seconds={**seconds, "downtime": downtime})

    return run
