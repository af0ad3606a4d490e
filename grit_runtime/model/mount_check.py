"""Checking that a dump's mounts show the container no more than the live pod's would. Pure.

CRIU mounts what the image says, as root, in the node's mount namespace: any file system type with
any source and options, and any path of it, read-only or not. An ordinary container can't mount, so
its dump must have the mounts that runc would make of the live config.json, and in its order: each
one known, as strict as there, nothing masked uncovered. A container with CAP_SYS_ADMIN may have
changed all that; for it only the file systems are compared with a list. It may have bound a part of
its own root to another place, too: that is what CRIU makes of a mount with the root's superblock.

Spec: checkpoint-restore/criu criu/mount.c collect_mnt_from_image, do_new_mount and mounts_sb_equal,
criu/filesystems.c@2cf8f13; opencontainers/runc libcontainer/rootfs_linux.go@v1.3.6.
"""

from __future__ import annotations

from typing import Any

from grit_runtime.errors import MountError
from grit_runtime.model import mount_flags
from grit_runtime.model.mount_plan import dumped_mounts
from grit_runtime.model.paths import nearest_mount
from grit_runtime.startup.named import NamedTuple
from grit_runtime.wire.criu_image import text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence, Set

    from grit_runtime.model.mount_plan import LiveMount
    from grit_runtime.proto import criu_pb2 as criu

# enum fstype of mnt.proto
_PROC, _SYSFS, _TMPFS, _DEVPTS, _CGROUP, _MQUEUE, _CGROUP2 = 1, 2, 5, 6, 12, 14, 23
_HARMLESS = frozenset({_PROC, _SYSFS, _TMPFS, _DEVPTS, _CGROUP, _MQUEUE, _CGROUP2})
_CGROUPS = frozenset({_CGROUP, _CGROUP2})
# What runc mounts for a type of config.json. cgroup v1 is a tmpfs with the hierarchies bound in it.
_MADE_OF = {
    "proc": {_PROC},
    "sysfs": {_SYSFS},
    "devpts": {_DEVPTS},
    "mqueue": {_MQUEUE},
    "cgroup": {_CGROUP, _CGROUP2},
    "cgroup2": {_CGROUP2},
}
_DEV, _CONSOLE = "/dev", "/dev/console"
_REMEDY = "restore into a pod with the mounts and securityContext of the checkpointed one"


class MountEntry(NamedTuple):
    """One entry, its path and key as text."""

    destination: str
    key: str | None
    entry: criu.mnt_entry


def check(
    entries: Sequence[criu.mnt_entry],
    spec: dict[str, Any],
    live: Sequence[LiveMount],
    exposed: Set[str],
    *,
    is_admin: bool,
) -> None:
    """PrivilegeError at the first mount that the live pod would not have.

    *exposed* are those of the pod's masked and read-only paths that exist on this node.
    """
    dumped = dumped_mounts(entries)
    mounts = [MountEntry(d.destination, d.key, e) for d, e in zip(dumped, entries, strict=True)]
    roots = [mount.entry for mount in mounts if mount.destination == "/"]
    for mount in mounts:
        _check_file_system(
            mount, is_part=is_admin and any(is_part_of(mount.entry, root) for root in roots)
        )
    if len(roots) != 1:
        raise MountError(f"the dump has {len(roots)} root mounts, expected one")
    if not is_admin:
        _check_tree(mounts)
        _check_each(mounts, spec, live)
        _check_covered(mounts, exposed)


def is_part_of(entry: criu.mnt_entry, root: criu.mnt_entry) -> bool:
    """Whether a mount is a part of the container's root, from which CRIU then binds it."""
    if text(root.root) != "/" or ".." in text(entry.root).split("/"):
        return False
    one, other = ((e.fstype, e.root_dev, e.source, e.options) for e in (entry, root))
    return one == other


def _check_file_system(mount: MountEntry, *, is_part: bool) -> None:
    """No type that reaches the node's disks or kernel; an external mount takes the live source."""
    entry, place = mount.entry, mount.destination
    if not place.startswith("/") or ".." in place.split("/"):
        raise MountError(f"mount {place}: expected an absolute path without '..'")
    if entry.with_plugin:
        raise MountError(f"mount {place}: asks for a CRIU plugin; expected none")
    if place == "/":
        if mount.key is not None:
            raise MountError(f"mount /: has the key {mount.key}; expected the root to have none")
    elif mount.key is None and entry.fstype not in _HARMLESS and not is_part:
        raise MountError(
            f"mount {place}: file system type {entry.fstype} of the checkpoint's own; the pod "
            "allows proc, sysfs, tmpfs, devpts, mqueue and cgroup, the volumes it has itself, and "
            "with CAP_SYS_ADMIN parts of its root; unmount it for the checkpoint"
        )


def _check_tree(mounts: Sequence[MountEntry]) -> None:
    """Check each mount's parent by its path; otherwise a masked mount could cover its mask."""
    at: dict[str, int] = {}
    ids: set[int] = set()
    for mount in mounts:
        if mount.destination in at or mount.entry.mnt_id in ids:
            raise MountError(
                f"mount {mount.destination}: the place or the id {mount.entry.mnt_id} is another "
                "mount's too; expected each its own"
            )
        at[mount.destination] = mount.entry.mnt_id
        ids.add(mount.entry.mnt_id)
    for mount in mounts:
        place = nearest_mount(mount.destination, at)
        if mount.destination != "/" and mount.entry.parent_mnt_id != at[place]:
            raise MountError(
                f"mount {mount.destination}: lies on mount {mount.entry.parent_mnt_id}, expected "
                f"{at[place]}, the one at {place}"
            )


def _check_each(
    mounts: Sequence[MountEntry], spec: dict[str, Any], live: Sequence[LiveMount]
) -> None:
    twins = {mount.destination: mount for mount in live}
    at = {mount.destination: mount for mount in mounts}
    volumes = {m.entry.root_dev for m in mounts if m.key is not None and m.entry.root == b"/"}
    readonly = frozenset(spec["linux"].get("readonlyPaths") or ())
    for mount in mounts:
        if mount.destination == "/":
            _check_flags(mount, ("ro",) if spec["root"].get("readonly") else ())
        elif mount.key is not None:
            _check_volume(mount, mount.key, twins)
        elif mount.destination in readonly:
            _check_readonly(mount, at)
        else:
            _check_own(mount, twins.get(mount.destination))
            _check_apart(mount, volumes, at.get(_DEV))


def _check_volume(mount: MountEntry, key: str, twins: Mapping[str, LiveMount]) -> None:
    """CRIU takes an external mount's flags from the image: it is read-only only if it was."""
    for place in {key, mount.destination}:
        nearest_mount = twins.get(place.rpartition("/")[0])
        twin = twins.get(place)
        if twin is None and nearest_mount is not None and nearest_mount.fs_type == "cgroup":
            twin = nearest_mount
        if twin is not None:
            _check_flags(mount, twin.options)


def _check_readonly(mount: MountEntry, at: Mapping[str, MountEntry]) -> None:
    """A read-only path is a mount of the very place that it lies on."""
    _check_flags(mount, ("ro",))
    below = at[nearest_mount(mount.destination, at)]
    entry, base = mount.entry, below.entry
    rest = mount.destination.removeprefix(below.destination.rstrip("/"))
    root = text(base.root).rstrip("/") + rest
    if (entry.fstype, entry.root_dev, text(entry.root)) != (base.fstype, base.root_dev, root):
        raise MountError(
            f"mount {mount.destination}: shows {text(entry.root)} of another place, expected "
            f"{root} of the mount at {below.destination}"
        )


def _check_own(mount: MountEntry, twin: LiveMount | None) -> None:
    """A mount that CRIU makes is one that runc makes for the live pod, or an empty-born tmpfs."""
    kind, place = mount.entry.fstype, mount.destination
    made_of = _MADE_OF.get(twin.fs_type, set()) if twin else set()
    if kind not in made_of and kind != _TMPFS and not (kind == _DEVPTS and place == _CONSOLE):
        raise MountError(
            f"mount {place}: file system type {kind} is not what the pod has there; {_REMEDY}"
        )
    if twin is not None:
        is_v1 = twin.fs_type == "cgroup" and kind == _TMPFS
        _check_flags(mount, [o for o in twin.options if not (is_v1 and o in {"ro", "rro"})])


def _check_apart(mount: MountEntry, volumes: Set[int], dev: MountEntry | None) -> None:
    """Refuse a mount that shows a part of another mount or a volume, to which CRIU would bind it.

    The container's own /dev/null, in its own /dev, is allowed: it masks a file in dumps where CRIU
    was not given the mask as an external mount.
    """
    entry, root = mount.entry, text(mount.entry.root)
    is_mask = dev is not None and (root, entry.root_dev) == ("/null", dev.entry.root_dev)
    is_part = root != "/" and entry.fstype not in _CGROUPS and mount.destination != _CONSOLE
    if (is_part and not is_mask) or entry.root_dev in volumes:
        raise MountError(
            f"mount {mount.destination}: shows {root} of another mount; expected one of its own"
        )


def _check_flags(mount: MountEntry, options: Iterable[str]) -> None:
    for option in options:
        flag = mount_flags.OPTIONS.get(option, 0)
        if mount.entry.flags & flag != flag:
            raise MountError(
                f"mount {mount.destination}: is not {option} in the checkpoint, as the pod has it; "
                f"{_REMEDY}"
            )


def _check_covered(mounts: Sequence[MountEntry], exposed: Set[str]) -> None:
    open_paths = sorted(exposed - {mount.destination for mount in mounts})
    if open_paths:
        raise MountError(
            f"the dump leaves {', '.join(open_paths)} open, which the pod masks or makes "
            f"read-only; {_REMEDY}"
        )
