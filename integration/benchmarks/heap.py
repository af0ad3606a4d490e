"""Moving a process with a large heap: grit-runtime beside runc, and what the machine could do."""

from __future__ import annotations

import statistics

from integration.benchmarks import wrapper
from integration.benchmarks.comparison import Bench, Row, ratio_row, timed
from integration.pods import checkpoints, kubelet, workload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from integration.pods.kubelet import Pod

HEAP_MIB = 4096
PAIRS = 3
LIMIT = 1 / 1.5
BY_HAND = "/mnt/grit-agent/by-hand"
TAKEN = "/mnt/grit-agent/default/bench"


def checkpoint(bench: Bench, name: str) -> Row:
    """A checkpoint that ends its pod, sealed and on the disk, and `runc checkpoint` with a sync.

    The bound is what the disk needs for as many bytes.
    """
    seconds: dict[Callable[[Pod], None], list[float]] = {by_grit: [], by_runc: [], by_disk: []}
    for at in range(PAIRS):
        for way in list(seconds)[:: 1 if at % 2 else -1]:
            seconds[way].append(moved(bench, way))
    ours, theirs, bound = map(statistics.median, seconds.values())
    return ratio_row(name, ours, theirs, LIMIT)._replace(bound=bound)


def moved(bench: Bench, take: Callable[[Pod], None]) -> float:
    with kubelet.running(bench.node, workload.counter_pod("bench", ballast_mib=HEAP_MIB)) as pod:
        workload.wait_for_count(pod, 5)
        bench.node.run(["sh", "-ec", f"rm -rf {BY_HAND} {TAKEN}; mkdir -p {BY_HAND}; sync"])
        return timed(lambda: take(pod))


def by_grit(pod: Pod) -> None:
    checkpoints.take(pod, "bench", "--after", "stopped", "--pod-is-going")


def by_runc(pod: Pod) -> None:
    script = f"""
    runc --root {wrapper.RUNC_ROOT} checkpoint --file-locks --image-path {BY_HAND} \\
        --work-path /tmp {pod.container_ids["counter"]}
    sync
    """
    pod.node.run(["sh", "-ec", script], timeout_s=120)


def by_disk(pod: Pod) -> None:
    target = f"{BY_HAND}/zeros"
    size = ["bs=4M", f"count={HEAP_MIB // 4}"]
    pod.node.run(["dd", "if=/dev/zero", f"of={target}", *size, "conv=fsync"], timeout_s=120)


def restore(bench: Bench, name: str) -> Row:
    moved(bench, by_grit)
    return ratio_row(name, *wrapper.restore_pairs(bench, PAIRS), LIMIT)


ROWS: dict[str, Callable[[Bench, str], Row]] = {
    "heap.checkpoint": checkpoint,
    "heap.restore": restore,
}
