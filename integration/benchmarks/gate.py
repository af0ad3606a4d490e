"""How long after its checkpoint has its name a restore goes on that has waited for it."""

from __future__ import annotations

import json
import statistics

from integration.benchmarks.comparison import Bench, Row, bar_row
from integration.node import rootfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

WAKE_BAR_S = 0.050
TIMES = 20

# A child announces checkpoints and renames them; this process waits for each.
WAKE = """
import hashlib, json, os, sys, time
from grit_runtime.files import arrivals
from grit_runtime.restore import gate
root = sys.argv[1]
taken = []
for number in range(int(sys.argv[2])):
    name, manifest = f"wake-{number}", f"{number}".encode() * (1 << 20)
    staged = f"{root}/bench/.{name}"
    os.makedirs(staged)
    with open(f"{staged}/manifest.json", "wb") as file:
        file.write(manifest)
    sha256 = hashlib.sha256(manifest).hexdigest()
    announced_fd, renamed_fd = os.pipe(), os.pipe()
    if os.fork() == 0:
        with arrivals.announced(root, "bench", name, sha256, 1 << 30, "the benchmark"):
            os.write(announced_fd[1], b"x")
            time.sleep(0.1)  # until the other waits
            at = time.monotonic()
            os.rename(staged, f"{root}/bench/{name}")
            os.write(renamed_fd[1], json.dumps(at).encode())
            time.sleep(0.1)
        os._exit(0)
    os.read(announced_fd[0], 1)
    assert gate.wait(gate.Place(root, "bench", name), 10) == sha256
    woken = time.monotonic()
    taken.append(woken - json.loads(os.read(renamed_fd[0], 100)))
    os.wait()
print(json.dumps(taken))
"""


def wake(bench: Bench, name: str) -> Row:
    """From the rename of a checkpoint, whose manifest has 1 to 2 MiB, to the end of the wait."""
    python = f"/{rootfs.VENV}/bin/python"
    done = bench.node.run([python, "-c", WAKE, "/run/bench/checkpoints", str(TIMES)])
    return bar_row(name, statistics.median(json.loads(done.stdout)), WAKE_BAR_S)


ROWS: dict[str, Callable[[Bench, str], Row]] = {"gate.wake": wake}
