"""CRIU, or runc, is killed in the middle of a restore, as the OOM killer does."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from integration.pods import checkpoints, kubelet, workload
from integration.tests.matrix import cases
from integration.tests.matrix.test_restart import refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.node.node import Node
    from integration.tests.conftest import Nodes

pytestmark = pytest.mark.usefixtures("fresh_nodes")

YARD = ".criu.cgyard."  # where CRIU mounts the cgroup hierarchies, in its work directory
BALLAST_MIB = 400  # which CRIU reads for a while


@pytest.fixture(scope="module")
def checkpoint(nodes: Nodes, fresh_nodes: None) -> None:  # noqa: ARG001 -- emptied before
    source = kubelet.run_pod(nodes.a, workload.counter_pod("killed-a", ballast_mib=BALLAST_MIB))
    workload.wait_for_count(source, 5)
    cases.move(nodes, source, "killed")


def mounts(node: Node) -> list[str]:
    """Where a restore has mounted something for itself."""
    lines = (node.root.parent / "mounts").read_text().splitlines()
    places = [line.split()[1] for line in lines]
    return [path for path in places if YARD in path or path.endswith("/criu-root")]


def kill_once_it_has_mounts(node: Node, words: bytes) -> None:
    """Kill the oldest process of the node that has *words* in its command line."""
    while not any(YARD in path for path in mounts(node)):
        pass
    for pid in sorted(int(path.name) for path in Path("/proc").glob("[0-9]*")):
        with suppress(OSError):
            if (
                words in Path(f"/proc/{pid}/cmdline").read_bytes()
                and node.id in Path(f"/proc/{pid}/cgroup").read_text()
            ):
                os.kill(pid, signal.SIGKILL)
                return


@pytest.mark.case("CRIU or runc is killed during a restore, which is tried again", cases.RESTORED)
@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (b"criu: restore", "failed: CRIU was killed by"),
        (b"restore\0--detach", "failed: runc was killed by SIGKILL"),
    ],
    ids=["criu", "runc"],
)
@pytest.mark.usefixtures("checkpoint")
def test_nothing_stays_mounted_and_the_next_start_restores(
    nodes: Nodes, words: bytes, reason: str
) -> None:
    spec = workload.counter_pod(
        f"killed-{words[:4].decode()}",
        annotations=(("grit.dev/restore-name", "killed"),),
        ballast_mib=BALLAST_MIB,
    )
    with kubelet.sandbox(nodes.b, spec) as target:
        killer = threading.Thread(
            target=kill_once_it_has_mounts, args=(nodes.b, words), daemon=True
        )
        killer.start()
        assert reason in refused(target, "counter")
        assert mounts(nodes.b) == []
        log_dir = nodes.b.path(cases.LOG_DIR / "default" / spec.name / "counter")
        assert [path for path in log_dir.iterdir() if YARD in path.name] == []
        assert checkpoints.left_by_restores(target) == []
        target.restart("counter")
        workload.wait_for_count(target, 20)
