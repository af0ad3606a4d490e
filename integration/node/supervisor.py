"""Supervisor of one node: starts it, and takes everything away when it or its owner ends.

Runs as a process of its own, so that a killed test run leaves nothing: its standard input is a
pipe whose other end only the owner holds. Whatever a killed supervisor leaves, the next one sweeps.
Stdlib only, as it must not die of what the tests import.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import subprocess
import sys
from pathlib import Path

from integration.node import cgroup

NAME_PREFIX = "grit-node-"

# Takes the shell that runs it into a node's cgroups, then becomes the command after "--".
JOIN_SCRIPT = 'while [ "$1" != -- ]; do echo 0 >"$1"; shift; done; shift; exec "$@"'


def join_argv(name: str, argv: list[str], below: str = "") -> list[str]:
    """*argv*, run inside the cgroups of the node *name*, or in the cgroup *below* them."""
    files = [str(file.parent / below / file.name) for file in cgroup.join_files(name)]
    return ["sh", "-c", JOIN_SCRIPT, "join", *files, "--", *argv]


def main() -> None:
    """Keep one node: the arguments are its directory, its root filesystem and its host name."""
    node_dir, rootfs, hostname = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    node_dir.parent.mkdir(parents=True, exist_ok=True)
    everyone = _lock(node_dir.parent / "lock")
    sweep(node_dir.parent)
    node_dir.mkdir(mode=0o700)
    _lock(node_dir / "lock")  # held for as long as this process lives
    os.close(everyone)
    try:
        cgroup.create(node_dir.name)
        _keep(node_dir, rootfs, hostname)
    finally:
        # A sweep would make the lock's file anew in a directory that is being removed.
        _lock(node_dir.parent / "lock")
        _remove(node_dir)


def sweep(nodes_dir: Path) -> None:
    """Remove what nodes left whose supervisor was killed.

    The caller holds the lock in *nodes_dir*.
    """
    alive = set()
    for node_dir in nodes_dir.glob(f"{NAME_PREFIX}*"):
        if _is_abandoned(node_dir):
            _remove(node_dir)
        else:
            alive.add(node_dir.name)
    for name in cgroup.leftovers(NAME_PREFIX) - alive:
        _remove_cgroups(name)


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def _is_abandoned(node_dir: Path) -> bool:
    fd = os.open(node_dir / "lock", os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _keep(node_dir: Path, rootfs: str, hostname: str) -> None:
    """Run the node until it ends by itself or standard input does."""
    init = Path(__file__).with_name("init.sh")
    # Two steps, as a cgroup namespace is rooted where its first process is when it is made.
    enter_cgroup = ["unshare", "--cgroup", "--", str(init), rootfs, str(node_dir), hostname]
    argv = ["setpriv", "--pdeathsig", "KILL"]
    argv += ["unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork"]
    argv += ["--kill-child=KILL", "--propagation", "private", "--"]
    argv += join_argv(node_dir.name, enter_cgroup)
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as node:
        ended = os.pidfd_open(node.pid)
        select.select([ended, sys.stdin], [], [])
        os.close(ended)
        node.kill()
        _wait_thawing(node, node_dir.name)


def _wait_thawing(node: subprocess.Popen[bytes], name: str) -> None:
    while True:
        cgroup.thaw(name)
        try:
            node.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
        return


def _remove(node_dir: Path) -> None:
    _remove_cgroups(node_dir.name)
    shutil.rmtree(node_dir)


def _remove_cgroups(name: str) -> None:
    cgroup.thaw(name)
    cgroup.remove(name)


if __name__ == "__main__":
    main()
