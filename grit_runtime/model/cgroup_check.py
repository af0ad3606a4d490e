"""Whether a dump's cgroups stay below the container's own. Pure.

CRIU makes the directories of cgroup.img, writes their properties and moves the tasks, as root and
by path. runc gives it the live container's cgroup as a new root, but only a path that starts with
a directory of the image is moved there, and nothing is checked for "..": an image could put a task
into any cgroup of the node, or write to any of its files.

Spec: checkpoint-restore/criu criu/cgroup.c rewrite_cgsets, prepare_cgroup_dirs and
restore_cgroup_prop@2cf8f13.
"""

from __future__ import annotations

from grit_runtime.errors import PrivilegeError
from grit_runtime.wire.criu_image import text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.proto import criu_pb2 as criu

# The hierarchies that runc puts a container in, and so names a new root for; "" is cgroup v2.
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
    """By the controller's names, its directory: the one that CRIU moves to the live cgroup."""
    names = [text(name) for name in controller.cnames]
    unknown = sorted(set(names) - _CONTROLLERS)
    if unknown:
        raise PrivilegeError(f"cgroup.img: controller {unknown[0]!r} is none that runc uses")
    if len(controller.dirs) != 1:
        raise PrivilegeError(
            f"cgroup.img: {len(controller.dirs)} directories of {names}, expected the container's"
        )
    root = text(controller.dirs[0].dir_name)
    if not root.isascii() or not set(root.split("/")).isdisjoint({"", ".", ".."}):
        raise PrivilegeError(f"cgroup.img: directory {root!r}, expected a relative path below")
    _check_directory(root, controller.dirs[0])
    return dict.fromkeys(names, root)


def _check_directory(path: str, directory: criu.cgroup_dir_entry) -> None:
    names = [text(prop.name) for prop in directory.properties]
    for name in names:
        if "/" in name or name in _NODE_WIDE or len(f"{path}/{name}") > _MAX_PATH:
            raise PrivilegeError(f"cgroup.img: property {name!r} of {path}, expected a file in it")
    for child in directory.children:
        name = text(child.dir_name)
        if "/" in name or name in {"", ".", ".."} or len(f"{path}/{name}") > _MAX_PATH:
            raise PrivilegeError(f"cgroup.img: directory {name!r} in {path}, expected one name")
        _check_directory(f"{path}/{name}", child)


def _check_member(member: criu.cg_member_entry, roots: dict[str, str]) -> None:
    """CRIU puts the new root in the place of the old, or of *cgns_prefix* bytes of the path."""
    name, path = text(member.name), text(member.path)
    root = f"/{roots.get(name, '')}"
    is_inside = f"{path}/".startswith(f"{root}/") and ".." not in path.split("/")
    is_prefix = f"{root}/"[member.cgns_prefix :][:1] == "/"
    if name not in roots or not is_inside or not is_prefix or len(path) > _MAX_PATH:
        raise PrivilegeError(
            f"cgroup.img: a task in {path} of {name or 'cgroup v2'}, expected one in the "
            f"container's {root}"
        )
