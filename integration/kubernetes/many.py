"""A control plane with the manager, and nodes in name only: how the manager does with many."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from grit_runtime.manager import names
from integration.kubernetes import cluster, grit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from integration.kubernetes.cluster import Cluster
    from integration.kubernetes.grit import Manager

_NODES = 20
_PROGRAM = Path(__file__).with_name("many_nodes.py")


class Many:
    """The cluster, its manager, and the program that stands for nodes (many_nodes.py)."""

    def __init__(self, cluster: Cluster, manager: Manager, program: subprocess.Popen[str]) -> None:
        self.cluster = cluster
        self.manager = manager
        self._program = program

    def asked(self, what: str, count: int) -> dict[str, Any]:
        """What the program answers."""
        assert self._program.stdin
        assert self._program.stdout
        self._program.stdin.write(f"{what} {count}\n")
        self._program.stdin.flush()
        answer: dict[str, Any] = json.loads(self._program.stdout.readline())
        return answer


@contextmanager
def managed(log: Path) -> Iterator[tuple[Cluster, Manager]]:
    """A control plane with the manager; no nodes."""
    with cluster.control_plane() as plane, grit.installed(plane, log) as manager:
        yield plane, manager


@contextmanager
def running(log: Path) -> Iterator[Many]:
    """The nodes are known to the manager while the block runs."""
    with managed(log) as (plane, manager):
        plane.kubectl("delete", "daemonset", names.AGENT, "--namespace", names.NAMESPACE)
        argv = [sys.executable, _PROGRAM, str(_NODES)]
        program = plane.plane.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with program:
            assert program.stdout
            assert program.stdout.readline() == "ready\n"
            yield Many(plane, manager, program)
