"""A cluster to try things in: it lasts as long as a shell, or as the command that is given.

usage: python -m integration.kubernetes.shell [COMMAND...]
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

from integration.kubernetes import cluster
from integration.kubernetes.control_plane import HOME
from integration.node.node import ENVIRONMENT
from integration.node.rootfs import EDITIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from integration.kubernetes.cluster import Cluster


def main() -> int:
    """The command's exit status."""
    with cluster.running(EDITIONS["forky"]) as kubernetes:
        programs = _write_programs(kubernetes)
        environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
        argv = sys.argv[1:] or ["bash"]
        return subprocess.run(argv, env=environment, check=False).returncode


def _write_programs(kubernetes: Cluster) -> Path:
    """A directory with a program for kubectl and one for each node, which runs what follows."""
    plane = kubernetes.plane
    on_a_node = ["env", *(f"{name}={value}" for name, value in ENVIRONMENT.items())]
    programs = {"kubectl": plane.kubectl_argv()}
    programs |= {node.name: [*node.enter_argv(), *on_a_node] for node in kubernetes.nodes}
    for name, argv in programs.items():
        path = plane.write(name, f'#!/bin/sh\nexec {shlex.join(argv)} "$@"\n')
        plane.path(path).chmod(0o755)
    return plane.path(HOME)


if __name__ == "__main__":
    sys.exit(main())
