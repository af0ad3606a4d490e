"""What the control plane costs: of one migration, of many objects at once, and at rest.

The many are on nodes in name only (integration/kubernetes/many_nodes.py): what is measured is the
manager and the API server, on the two processors that they share with what stands for the nodes.
"""

from __future__ import annotations

import os
import statistics
import time

from grit_runtime.host import procfs
from integration.benchmarks import chain
from integration.benchmarks.comparison import Bench, Row, bar_row
from integration.kubernetes import pods

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MOVES = 7
CONTROL_BAR_S = 2.0
AT_ONCE = 200
QUEUE_BAR_S = 5.0
CPU_BAR_S = 0.03  # 4,000 pods of 1,000 nodes in two minutes
MEMORY_BAR_MIB = 150
REVIEWS = 1000
REVIEW_BAR_S = 0.020
REST_S = 60
PENDING = 100
REST_LIMIT = 1.5


def migration(bench: Bench, name: str) -> Row:
    """From `kubectl apply` to the first tick on the target, without what no control plane does;
    beside the same of a chain of Jobs."""
    ours = [chain.moved(bench.cluster, f"move-{number}") for number in range(MOVES)]
    theirs = [chain.chained(bench.cluster, f"chain-{number}") for number in range(MOVES)]
    seconds, other = statistics.median(ours), statistics.median(theirs)
    return Row(name, seconds, other, seconds / other, CONTROL_BAR_S / other, None, "s")


def queue(bench: Bench, name: str) -> Row:
    """The longest that one of many Checkpoints waits, from its making to the agent's call."""
    told = bench.many.asked("Checkpoint", AT_ONCE)
    _all_well(told, "Checkpointed")
    waited = [asked - told["made"][one] for one, asked in told["asked"].items()]
    return bar_row(name, max(waited), QUEUE_BAR_S)


def processor(bench: Bench, name: str) -> Row:
    """The manager's processor time for one of many Migrations at once."""
    before_s = _processor_s(bench.many.manager.pid)
    told = bench.many.asked("Migration", AT_ONCE)
    _all_well(told, "Succeeded")
    taken_s = _processor_s(bench.many.manager.pid) - before_s
    return bar_row(name, taken_s / AT_ONCE, CPU_BAR_S)


def memory(bench: Bench, name: str) -> Row:
    """The most memory of the manager, with many Checkpoints at once."""
    _all_well(bench.many.asked("Checkpoint", AT_ONCE), "Checkpointed")
    peak_mib = _peak_mib(bench.many.manager.pid)
    return Row(name, peak_mib, MEMORY_BAR_MIB, peak_mib / MEMORY_BAR_MIB, 1.0, None, "MiB")


def webhook(bench: Bench, name: str) -> Row:
    """The 99th percentile of reviews of pods that an owner makes."""
    taken = sorted(bench.many.asked("Review", REVIEWS)["taken_s"])
    return bar_row(name, taken[REVIEWS * 99 // 100 - 1], REVIEW_BAR_S)


def at_rest(bench: Bench, name: str) -> Row:
    """Requests of the manager in a minute, with pods that are of no concern to it, and without."""
    cluster, manager = bench.many.cluster, bench.many.manager
    without = _requests(manager)
    cluster.apply(*(pods.pending(f"pending-{number}") for number in range(PENDING)))
    beside = _requests(manager)
    unit = "requests a minute"
    return Row(name, beside, without, beside / without, REST_LIMIT, None, unit)


def _requests(manager: Any) -> int:
    before = manager.requests()
    time.sleep(REST_S)
    return int(manager.requests() - before)


def _all_well(told: dict[str, Any], phase: str) -> None:
    others = {why for end, why in told["ended"].values() if end != phase}
    assert len(told["ended"]) == AT_ONCE, f"{len(told['ended'])} of {AT_ONCE} have ended"
    assert not others, f"not {phase}: {others}"


def _processor_s(pid: int) -> float:
    fields = procfs.text(pid, "stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_mib(pid: int) -> float:
    (line,) = (one for one in procfs.text(pid, "status").splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


ROWS: dict[str, Callable[[Bench, str], Row]] = {
    "kubernetes.migration": migration,
    "kubernetes.webhook": webhook,  # before there is work left from many objects
    "kubernetes.queue": queue,
    "kubernetes.memory": memory,  # before there was more at once
    "kubernetes.processor": processor,
    "kubernetes.at_rest": at_rest,
}
