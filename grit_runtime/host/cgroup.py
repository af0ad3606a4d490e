"""The cgroups of a container: listing their processes, and killing them.

Paths are `linux.cgroupsPath` of config.json, relative to each hierarchy's mount. On cgroup v1
every controller is a hierarchy of its own; on v2 there is one.
"""

import errno
import os
from contextlib import suppress

from grit_runtime.errors import NotFoundError
from grit_runtime.host import process

_ROOT = "/sys/fs/cgroup"


def directories(cgroups_path: str) -> list[str]:
    """The existing directories of this cgroup, in all mounted hierarchies.

    None for the top cgroup, which is never a container's.
    """
    relative = cgroups_path.strip("/")
    if not relative:
        return []
    roots = [_ROOT, *(f"{_ROOT}/{name}" for name in os.listdir(_ROOT))]
    candidates = (f"{root}/{relative}" for root in roots)
    return [path for path in candidates if os.path.exists(f"{path}/cgroup.procs")]


def of(pid: int) -> str:
    """The cgroup of a process: that of the freezer on v1, the only one on v2.

    Which of them counts is decided as in runc: beside v2, v1 may be mounted elsewhere.
    NotFoundError if the process has ended.
    """
    try:
        return memberships(pid).get("" if is_unified() else "freezer", "")
    except (FileNotFoundError, ProcessLookupError):
        raise NotFoundError(f"process {pid} has ended, and its container with it") from None


def hierarchies() -> dict[str, str]:
    """The mountpoint of each v1 hierarchy, by its name; none on v2."""
    if is_unified():
        return {}
    return {name: f"{_ROOT}/{name}" for name in os.listdir(_ROOT)}


def hierarchies_with(cgroups_path: str) -> frozenset[str]:
    """The hierarchies, as `memberships` names them, that have this cgroup.

    None for a systemd name of a cgroup, which is not a path.
    """
    if not cgroups_path.startswith("/"):
        return frozenset()
    names = ((name, _mounted(name)) for name in memberships("self"))
    return frozenset(name for name, top in names if top and os.path.isdir(top + cgroups_path))


def is_unified() -> bool:
    """Whether all controllers are v2's."""
    return os.path.exists(f"{_ROOT}/cgroup.controllers")


def enter(cgroups_path: str) -> None:
    """Move this process into a cgroup, in every hierarchy that has it."""
    existing = directories(cgroups_path)
    if not existing:
        raise NotFoundError(f"cgroup {cgroups_path}: not found in any hierarchy below {_ROOT}")
    for directory in existing:
        _enter(directory)


def enter_that_of(pid: int) -> None:
    """Move this process to the cgroup of *pid*, in every hierarchy where it is in another."""
    ours, theirs = (memberships(who) for who in ("self", pid))
    for controllers in theirs.keys() - {key for key in ours if ours[key] == theirs.get(key)}:
        _enter(f"{_mounted(controllers)}{theirs[controllers]}")


def _enter(directory: str) -> None:
    with open(f"{directory}/cgroup.procs", "w", encoding="ascii") as file:
        file.write("0")


def _mounted(controllers: str) -> str | None:
    """The mountpoint of a hierarchy; None if it is not mounted."""
    name = controllers.removeprefix("name=")
    roots = [f"{_ROOT}/{name}"] if name else [f"{_ROOT}/unified", _ROOT]
    return next((path for path in roots if os.path.exists(f"{path}/cgroup.procs")), None)


def memberships(who: int | str) -> dict[str, str]:
    """A process's cgroup in each hierarchy, by the hierarchy's controllers; "" is v2's."""
    with open(f"/proc/{who}/cgroup", encoding="utf-8") as file:
        lines = (line.rstrip("\n").split(":", 2) for line in file)
        return {controllers: path for _, controllers, path in lines}


def memory_left_bytes(cgroups_path: str) -> int | None:
    """The memory that the limit still allows; None without a limit."""
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


def cpus(cgroups_path: str) -> str:
    """The processors that the cgroup may use, as a list like ``0-2,5``; "" if none are set."""
    for directory in directories(cgroups_path):
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus"):
            with suppress(FileNotFoundError), open(f"{directory}/{name}", encoding="ascii") as file:
                return file.read().strip()
    return ""


def pids(cgroups_path: str) -> set[int]:
    """The processes in this cgroup and those beneath it, as this pid namespace sees them.

    A container may make cgroups of its own and remove them meanwhile. The processes of a threaded
    cgroup are listed by the domain above it. Spec: linux Documentation/admin-guide/cgroup-v2.rst.
    """
    members: set[int] = set()
    for top in directories(cgroups_path):
        for directory, _, _ in os.walk(top):
            try:
                with open(f"{directory}/cgroup.procs", encoding="ascii") as file:
                    members.update(int(line) for line in file)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
                    raise
    return members - {0}  # 0: a process outside this pid namespace


def kill(cgroups_path: str) -> None:
    """Kill every process in the cgroup, then remove its directories. Blocks until they are gone."""
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
