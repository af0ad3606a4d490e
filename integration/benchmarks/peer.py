"""From one node's agent to another's: grit beside a bare TLS stream."""

from __future__ import annotations

import statistics
from pathlib import Path

from integration.benchmarks.comparison import Bench, Row, ratio_row, timed
from integration.benchmarks.store import checkpoint, noise
from integration.node import rootfs
from integration.pods import agents, checkpoints

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from integration.node.node import Node

PAIRS = 5
SIZE_MIB = 2048
AS_FAST = 1 / 0.8
FILE, RECEIVED = "/var/tmp/stream", "/var/tmp/received"
STREAM = Path(__file__).with_name("tls_stream.py")


def pull(bench: Bench, name: str) -> Row:
    """A pull that is verified and durable; one stream of as much, hashed, written and synced.

    The bound is the same stream thrown away on arrival.
    """
    a, b = bench.node, bench.other_node
    path = checkpoint(a.path(checkpoints.ROOT), noise, SIZE_MIB)
    with a.path(Path(FILE)).open("wb") as file:
        for part in sorted(path.rglob("*.img")):
            file.write(part.read_bytes())
    ours: list[float] = []
    theirs: list[float] = []
    alone: list[float] = []
    with agents.running((a, b)):
        for at in range(PAIRS):
            for work in (pulled, streamed) if at % 2 else (streamed, pulled):
                b.run(["sh", "-c", f"rm -rf {checkpoints.ROOT}/* {RECEIVED}; sync"])
                (ours if work is pulled else theirs).append(work(a, b))
            alone.append(streamed(a, b, "-"))
    mine, other, bound = map(statistics.median, (ours, theirs, alone))
    return ratio_row(name, mine, other, AS_FAST)._replace(bound=bound)


def pulled(a: Node, b: Node) -> float:
    return timed(lambda: b.run(["grit", "pull", "default/bench", f"peer://{a.name}"]))


def streamed(a: Node, b: Node, received: str = RECEIVED) -> float:
    python = f"/{rootfs.VENV}/bin/python"
    script = STREAM.read_text()
    with b.popen([python, "-c", script, "receive", received], stdout=-1) as receiving:
        assert receiving.stdout is not None
        port = receiving.stdout.readline().strip()
        sent = ["send", FILE, b.name, str(b.connection.address), port]
        a.run([python, "-c", script, *sent])
        return float(receiving.stdout.readline())


ROWS: dict[str, Callable[[Bench, str], Row]] = {"peer.pull": pull}
