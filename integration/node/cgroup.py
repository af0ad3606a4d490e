"""The cgroups a node lives in: one of the node's name at the top of every mounted hierarchy.

Stdlib only: the supervisor, which outlives the test run, imports it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

REMOVE_TIMEOUT_S = 10


class Hierarchy(NamedTuple):
    """One mounted cgroup hierarchy; version 2 is *unified*."""

    path: Path
    unified: bool


def hierarchies(mounts: str | None = None) -> list[Hierarchy]:
    """The hierarchies, of either version, in *mounts*, the text of /proc/self/mounts; or ours."""
    found = {}
    for line in (mounts or Path("/proc/self/mounts").read_text()).splitlines():
        _, target, kind, *_ = line.split()
        if kind in {"cgroup", "cgroup2"}:
            found[target] = Hierarchy(Path(target), kind == "cgroup2")
    return list(found.values())


def create(name: str) -> None:
    """Make the cgroup *name* in every hierarchy, ready to hold cgroups of its own."""
    for hierarchy in hierarchies():
        if hierarchy.unified:
            _delegate_controllers(hierarchy.path)
        path = hierarchy.path / name
        path.mkdir()
        if (path / "cpuset.cpus").exists() and not hierarchy.unified:
            _fill_cpuset(path)


def join_files(name: str) -> list[Path]:
    """The files that take a process into the cgroup *name*."""
    return [hierarchy.path / name / "cgroup.procs" for hierarchy in hierarchies()]


def thaw(name: str) -> None:
    """Thaw everything below *name*: a frozen task of version 1 cannot even be killed."""
    for hierarchy in hierarchies():
        for state in (hierarchy.path / name).glob("**/freezer.state"):
            state.write_text("THAWED")


def remove(name: str) -> None:
    """Remove the cgroups *name* with all below them, once the last task has left."""
    deadline = time.monotonic() + REMOVE_TIMEOUT_S
    for hierarchy in hierarchies():
        for directory, _, _ in os.walk(hierarchy.path / name, topdown=False):
            _remove_one(directory, deadline)


def leftovers(prefix: str) -> set[str]:
    """Names of the top cgroups that begin with *prefix*."""
    return {path.name for hierarchy in hierarchies() for path in hierarchy.path.glob(f"{prefix}*")}


def _delegate_controllers(path: Path) -> None:
    for controller in (path / "cgroup.controllers").read_text().split():
        (path / "cgroup.subtree_control").write_text(f"+{controller}")


def _fill_cpuset(path: Path) -> None:
    # A new cpuset of version 1 is empty and lets no task in; its children copy it from here on.
    for setting in ("cpuset.cpus", "cpuset.mems"):
        (path / setting).write_text((path.parent / setting).read_text())
    (path / "cgroup.clone_children").write_text("1")


def _remove_one(directory: str, deadline: float) -> None:
    # The last task of a pid namespace is gone for wait(2) a moment before it is for its cgroup.
    while True:
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
