"""Checking that a dump's cgroups stay below the container's own. Pure.

CRIU makes the directories of cgroup.img, writes their properties and moves the tasks, as root and
by path. runc gives it the live container's cgroup as a new root, but only a path that starts with
a directory of the image is moved there, and nothing is checked for "..": an image could put a task
into any cgroup of the node, or write to any of its files.

Spec: checkpoint-restore/criu criu/cgroup.c rewrite_cgsets, prepare_cgroup_dirs and
restore_cgroup_prop@2cf8f13.
"""

from __future__ import annotations

from grit_runtime.errors import CgroupError
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire.criu_image import text

# The hierarchies in which runc creates a container's cgroup, and gives CRIU a new root; "" is v2.
_CONTROLLERS = frozenset(
    {
        "",
        "blkio",
        "cpu",
        "cpuacct",
        "cpuset",
        "devices",
        "freezer",
        "hugetlb",
        "memory",
        "misc",
        "name=systemd",
        "net_cls",
        "net_prio",
        "perf_event",
        "pids",
        "rdma",
    }
)
_NODE_WIDE = frozenset({"release_agent"})
_MAX_PATH = 2048  # CRIU prints these into a PATH_MAX buffer, behind the new root, unchecked


def without_roots(cgroup: criu.cgroup_entry) -> criu.cgroup_entry | None:
    """*cgroup* without hierarchies in which the container was at the root; None if there is none.

    runc creates no cgroup there: it is v2 beside a v1 that has all controllers, or a v1 hierarchy
    of somebody else. A restored task stays where CRIU is, as a started task stays where runc is.
    """
    unused = {
        name
        for controller in cgroup.controllers
        if controller.dirs and all(directory.dir_name == b"" for directory in controller.dirs)
        for name in controller.cnames
    }
    if not unused:
        return None
    rest = criu.cgroup_entry()
    rest.CopyFrom(cgroup)
    kept = [c for c in cgroup.controllers if unused.isdisjoint(c.cnames)]
    del rest.controllers[:]
    rest.controllers.extend(kept)
    for group in rest.sets:
        members = [member for member in group.ctls if member.name not in unused]
        del group.ctls[:]
        group.ctls.extend(members)
    return rest


def moved(cgroup: criu.cgroup_entry, cgroups_path: str) -> criu.cgroup_entry:
    """*cgroup* with the live container's directory on v2.

    runc before 1.2 gives CRIU no new root for v2, so CRIU would create the old pod's cgroup again
    for the tasks (libcontainer/criu_linux.go criuApplyCgroups@v1.1.15).
    """
    there = criu.cgroup_entry()
    there.CopyFrom(cgroup)
    new = cgroups_path.strip("/").encode("utf-8", "surrogateescape")
    for controller in there.controllers:
        if b"" in controller.cnames and len(controller.dirs) == 1:
            old, controller.dirs[0].dir_name = controller.dirs[0].dir_name, new
            for group in there.sets:
                for member in group.ctls:
                    if member.name == b"" and (member.path + b"/").startswith(b"/" + old + b"/"):
                        member.path = b"/" + new + member.path[len(old) + 1 :]
                        if member.cgns_prefix == len(old) + 1:
                            member.cgns_prefix = len(new) + 1
    return there


def check(cgroup: criu.cgroup_entry | None, *, own_set: int) -> None:
    """PrivilegeError at the first name that leaves the container's cgroup.

    *own_set* is the set of CRIU itself at the dump: its tasks stay where runc puts CRIU.
    """
    if cgroup is None:
        return
    roots: dict[str, str] = {}
    for controller in cgroup.controllers:
        roots |= _roots(controller)
    for group in cgroup.sets:
        if group.id != own_set:
            for member in group.ctls:
                _check_member(member, roots)


def _roots(controller: criu.cg_controller_entry) -> dict[str, str]:
    """The directory that CRIU moves to the live cgroup, by the controller's names."""
    names = [text(name) for name in controller.cnames]
    unknown = sorted(set(names) - _CONTROLLERS)
    if unknown:
        raise CgroupError(f"cgroup.img: controller {unknown[0]!r} is none that runc uses")
    if len(controller.dirs) != 1:
        raise CgroupError(
            f"cgroup.img: {len(controller.dirs)} directories of {names}, expected the container's"
        )
    root = text(controller.dirs[0].dir_name)
    if not root.isascii() or not set(root.split("/")).isdisjoint({"", ".", ".."}):
        raise CgroupError(f"cgroup.img: directory {root!r}, expected a relative path below")
    _check_directory(root, controller.dirs[0])
    return dict.fromkeys(names, root)


def _check_directory(path: str, directory: criu.cgroup_dir_entry) -> None:
    names = [text(prop.name) for prop in directory.properties]
    for name in names:
        if "/" in name or name in _NODE_WIDE or len(f"{path}/{name}") > _MAX_PATH:
            raise CgroupError(f"cgroup.img: property {name!r} of {path}, expected a file in it")
    for child in directory.children:
        name = text(child.dir_name)
        if "/" in name or name in {"", ".", ".."} or len(f"{path}/{name}") > _MAX_PATH:
            raise CgroupError(f"cgroup.img: directory {name!r} in {path}, expected one name")
        _check_directory(f"{path}/{name}", child)


def _check_member(member: criu.cg_member_entry, roots: dict[str, str]) -> None:
    """CRIU replaces the old root, or *cgns_prefix* bytes of the path, by the new root."""
    name, path = text(member.name), text(member.path)
    root = f"/{roots.get(name, '')}"
    is_inside = f"{path}/".startswith(f"{root}/") and ".." not in path.split("/")
    is_prefix = f"{root}/"[member.cgns_prefix :][:1] == "/"
    if name not in roots or not is_inside or not is_prefix or len(path) > _MAX_PATH:
        raise CgroupError(
            f"cgroup.img: a task in {path} of {name or 'cgroup v2'}, expected one in the "
            f"container's {root}"
        )
