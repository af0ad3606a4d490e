"""The cgroups of a container: who is in them, and ending them.

Paths are `linux.cgroupsPath` of config.json, relative to each hierarchy's mount. On cgroup v1
every controller is a hierarchy of its own; on v2 there is one.
"""

import os

from grit_runtime.host import process

_ROOT = "/sys/fs/cgroup"


def directories(cgroups_path: str) -> list[str]:
    """The existing directories of this cgroup, in all mounted hierarchies."""
    relative = cgroups_path.strip("/")
    roots = [_ROOT, *(f"{_ROOT}/{name}" for name in os.listdir(_ROOT))]
    candidates = (f"{root}/{relative}" for root in roots)
    return [path for path in candidates if os.path.exists(f"{path}/cgroup.procs")]


def pids(cgroups_path: str) -> set[int]:
    """The processes in this cgroup and those beneath it, as this pid namespace sees them."""
    found: set[int] = set()
    for top in directories(cgroups_path):
        for directory, _, _ in os.walk(top):
            with open(f"{directory}/cgroup.procs", encoding="ascii") as file:
                found.update(int(line) for line in file)
    return found - {0}  # 0: a process outside our pid namespace


def kill(cgroups_path: str) -> None:
    """End every process in the cgroup, then remove its directories. Blocks until they are gone."""
    _thaw(cgroups_path)
    while living := pids(cgroups_path):
        for pid in living:
            process.kill_and_wait(pid)
    for top in directories(cgroups_path):
        for directory, _, _ in os.walk(top, topdown=False):
            os.rmdir(directory)


def _thaw(cgroups_path: str) -> None:
    """On cgroup v1 a frozen task does not even die."""
    for path in directories(cgroups_path):
        state = f"{path}/freezer.state"
        if os.path.exists(state):
            with open(state, "w", encoding="ascii") as file:
                file.write("THAWED")
