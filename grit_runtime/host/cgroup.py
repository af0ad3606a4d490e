"""The cgroups of a container: who is in them, and ending them.

Paths are `linux.cgroupsPath` of config.json, relative to each hierarchy's mount. On cgroup v1
every controller is a hierarchy of its own; on v2 there is one.
"""

import os

from grit_runtime.errors import NotFoundError
from grit_runtime.host import process

_ROOT = "/sys/fs/cgroup"


def directories(cgroups_path: str) -> list[str]:
    """The existing directories of this cgroup, in all mounted hierarchies; none for the top one,
    which is no container's."""
    relative = cgroups_path.strip("/")
    if not relative:
        return []
    roots = [_ROOT, *(f"{_ROOT}/{name}" for name in os.listdir(_ROOT))]
    candidates = (f"{root}/{relative}" for root in roots)
    return [path for path in candidates if os.path.exists(f"{path}/cgroup.procs")]


def of(pid: int) -> str:
    """The cgroup of a process: that of the freezer on v1, the only one on v2.

    Which of them counts is told as runc tells it: beside v2, v1 may be mounted elsewhere.
    """
    return _memberships(pid).get("" if is_unified() else "freezer", "")


def hierarchies() -> dict[str, str]:
    """Where each of v1's hierarchies is mounted, by its name; none on v2."""
    if is_unified():
        return {}
    return {name: f"{_ROOT}/{name}" for name in os.listdir(_ROOT)}


def is_unified() -> bool:
    """Whether all controllers are v2's."""
    return os.path.exists(f"{_ROOT}/cgroup.controllers")


def enter(cgroups_path: str) -> None:
    """Move this process into a cgroup, in every hierarchy that has it."""
    found = directories(cgroups_path)
    if not found:
        raise NotFoundError(f"cgroup {cgroups_path}: not found in any hierarchy below {_ROOT}")
    for directory in found:
        _enter(directory)


def enter_that_of(pid: int) -> None:
    """Move this process to where *pid* is, in every hierarchy that they are not together in."""
    ours, theirs = (_memberships(who) for who in ("self", pid))
    for controllers in theirs.keys() - {key for key in ours if ours[key] == theirs.get(key)}:
        name = controllers.removeprefix("name=")
        roots = [f"{_ROOT}/{name}"] if name else [f"{_ROOT}/unified", _ROOT]
        root = next(path for path in roots if os.path.exists(f"{path}/cgroup.procs"))
        _enter(f"{root}{theirs[controllers]}")


def _enter(directory: str) -> None:
    with open(f"{directory}/cgroup.procs", "w", encoding="ascii") as file:
        file.write("0")


def _memberships(who: int | str) -> dict[str, str]:
    """A process's cgroup in each hierarchy, which is known by its controllers."""
    with open(f"/proc/{who}/cgroup", encoding="utf-8") as file:
        lines = (line.rstrip("\n").split(":", 2) for line in file)
        return {controllers: path for _, controllers, path in lines}


def memory_left_bytes(cgroups_path: str) -> int | None:
    """What the memory limit leaves; None without a limit."""
    for directory in directories(cgroups_path):
        for limit, usage in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            if os.path.exists(f"{directory}/{limit}"):
                return _difference_bytes(f"{directory}/{limit}", f"{directory}/{usage}")
    return None


def _difference_bytes(limit_path: str, usage_path: str) -> int | None:
    with open(limit_path, encoding="ascii") as limit, open(usage_path, encoding="ascii") as usage:
        text = limit.read().strip()
        # v1 says "no limit" with the largest multiple of the page size
        return None if text == "max" or int(text) >= 1 << 62 else int(text) - int(usage.read())


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
