"""Pairing the mounts that a dump expects from outside with those that the new pod has. Pure.

An external mount's content is not in the dump: its entry has a key, and at the restore CRIU must be
given a source for that key. runc does so for each bind mount and device node of the new pod's
config.json, with the destination as the key, and on cgroup v1 for each hierarchy; a masked file is
a mount of /dev/null, which is always among the nodes. A dump that was not made through runc has
other keys: names of the dumper's own, or the mark by which CRIU takes the source from the dump, a
path on the old host. There the image is given the key that runc has a source for.

Spec: checkpoint-restore/criu criu/mount.c get_mp_root, criu/external.c@2cf8f13;
opencontainers/runc libcontainer/criu_linux.go Restore@v1.3.6.
"""

from __future__ import annotations

import re

from grit_runtime.model import mount_flags
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.startup.named import NamedTuple
from grit_runtime.wire.criu_image import Image, entries, text, with_entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

_MASK = "/dev/null"
_DEFAULT_NODES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")

# A volume in the directory that kubelet keeps for a pod.
_KUBELET_VOLUME = re.compile(r"/kubelet/pods/[^/]+/volumes/[^/]+/([^/]+)")
_SHOWN = 8


class LiveMount(NamedTuple):
    """A mount of the new pod; *destination* has the symlinks of its rootfs resolved.

    *fs_type* is "bind", "device" for a node that runc keeps a key for, or the file system.
    *ordered* is the destination as config.json has it.
    """

    destination: str
    source: str
    fs_type: str
    options: tuple[str, ...]
    ordered: str = ""


class DumpedMount(NamedTuple):
    """A mount of the dump; *key* is the name by which CRIU looks for its source, or None.

    *origin* is its source, for messages: a path on the old node, or a file system's name.
    """

    destination: str
    key: str | None
    origin: str = ""


class Remapped(NamedTuple):
    """An external mount that `with_keys` gives its destination as key; *source* is the pod's."""

    destination: str
    key: str
    source: str


class MountPlan(NamedTuple):
    """What becomes of the external mounts; *extra* are live ones that the restored container lacks.

    *kept* and *extra* are destinations.
    """

    kept: tuple[str, ...]
    remapped: tuple[Remapped, ...]
    missing: tuple[DumpedMount, ...]
    extra: tuple[str, ...]


def live_mounts(spec: dict[str, Any], resolve: Callable[[str], str]) -> list[LiveMount]:
    """The mounts of config.json; *resolve* follows the new rootfs's symlinks in a destination.

    runc keys a mount by the resolved path: /run/secrets/... where config.json says /var/run/...
    """
    nodes = [node["path"] for node in spec["linux"].get("devices") or ()]
    return [LiveMount(path, path, "device", ()) for path in nodes] + [
        LiveMount(
            resolve(mount["destination"]),
            mount.get("source", ""),
            _fs_type(mount),
            tuple(mount.get("options") or ()),
            mount["destination"],
        )
        for mount in spec.get("mounts") or ()
    ]


def dumped_mounts(mounts: Iterable[criu.mnt_entry]) -> list[DumpedMount]:
    """The part of a mountpoints image that the plan needs."""
    return [DumpedMount(text(entry.mountpoint), _key(entry), _origin(entry)) for entry in mounts]


def plan_mounts(dumped: Sequence[DumpedMount], live: Sequence[LiveMount]) -> MountPlan:
    """Pair every external mount of *dumped* with the live mount at its destination."""
    sources = {path: path for path in _DEFAULT_NODES}
    sources |= {m.destination: m.source for m in live if m.fs_type in {"bind", "device"}}
    hierarchies = tuple(f"{m.destination}/" for m in live if m.fs_type == "cgroup")
    kept: list[str] = []
    remapped: list[Remapped] = []
    missing: list[DumpedMount] = []
    for mount in dumped:
        destination, key, _ = mount
        if key is None:
            continue
        if _maps_itself(key, destination, sources) or key.startswith(hierarchies):
            kept.append(destination)
        elif destination in sources:
            remapped.append(Remapped(destination, key, sources[destination]))
        elif destination.startswith(hierarchies):
            remapped.append(Remapped(destination, key, "the new pod's cgroup"))
        else:
            missing.append(mount)
    present = {mount.destination for mount in dumped}
    extra = [m.destination for m in live if m.fs_type == "bind" and m.destination not in present]
    return MountPlan(tuple(kept), tuple(remapped), tuple(missing), tuple(extra))


def with_keys(image: Image, plan: MountPlan) -> Image:
    """The mountpoints image with the keys that *plan* had to change."""
    places = {mount.destination for mount in plan.remapped}
    for index, entry in enumerate(entries(image, criu.mnt_entry)):
        if text(entry.mountpoint) in places and _key(entry) is not None:
            entry.ClearField("ext_mount")
            entry.ext_key = entry.mountpoint
            image = with_entry(image, index, entry)
    return image


def narrowed(
    mounts: Iterable[criu.mnt_entry], live: Sequence[LiveMount], source_spec: Mapping[str, Any]
) -> tuple[criu.mnt_entry, ...]:
    """The mounts of a dump, restricted by what both the new and the dumped pod's spec forbid.

    Older versions restored some volumes with fewer restrictions than their spec; a dump of such a
    pod is restored as the spec says.
    """
    source = _options(source_spec)
    common = {
        mount.destination: sum(
            flag
            for option, flag in mount_flags.OPTIONS.items()
            if option in mount.options and option in source.get(mount.ordered, ())
        )
        for mount in live
        if mount.fs_type == "bind"
    }
    narrow = []
    for entry in mounts:
        as_ordered = criu.mnt_entry()
        as_ordered.CopyFrom(entry)
        if _key(entry) is not None:
            as_ordered.flags |= common.get(text(entry.mountpoint), 0)
        narrow.append(as_ordered)
    return tuple(narrow)


def with_mounts(image: Image, mounts: Iterable[criu.mnt_entry]) -> Image:
    """The mountpoints image of a dump whose mounts were changed."""
    return image._replace(payloads=tuple(entry.SerializeToString() for entry in mounts))


def with_own_roots(image: Image) -> Image:
    """The mountpoints image in which no external mount shows a part of another.

    CRIU binds an external mount from its source, but leaves out to set its flags where an earlier
    mount that shows the same or more of the file system has them already: what was read-only would
    come back writable (criu/mount-v2.c do_bind_mount_v2@2cf8f13). What the container itself has
    bound from such a mount is found beneath it as before.
    """
    mounts = entries(image, criu.mnt_entry)
    external = [entry for entry in mounts if _key(entry) is not None]
    for index, entry in enumerate(mounts):
        base = entry if _key(entry) is not None else _shown_by(entry, external)
        if base is not None:
            below = text(entry.root)[len(text(base.root).rstrip("/")) :].rstrip("/")
            moved = criu.mnt_entry()
            moved.CopyFrom(entry)
            moved.root = f"/mount-{base.mnt_id}{below}".encode("utf-8", "surrogateescape")
            image = with_entry(image, index, moved)
    return image


def missing_reason(plan: MountPlan) -> str | None:
    """The mounts that the new pod lacks, in one line, or None."""
    if not plan.missing:
        return None
    shown = [mount.destination for mount in plan.missing[:_SHOWN]]
    rest = len(plan.missing) - _SHOWN
    more = f" and {rest} more" if rest > 0 else ""
    return (
        f"the new pod mounts nothing at {', '.join(shown)}{more}, where the "
        "checkpointed container had a volume; give the container volumeMounts with these mountPaths"
    )


def spec_line(mount: DumpedMount) -> str:
    """What the new pod's container must say to have *mount*: an item of volumeMounts."""
    volume = _KUBELET_VOLUME.search(mount.origin)
    return f"- {{name: {volume[1] if volume else 'VOLUME'}, mountPath: {mount.destination}}}"


def _options(spec: Mapping[str, Any]) -> dict[str, list[str]]:
    """Mount options of an untrusted config.json by destination, without malformed mounts."""
    mounts = spec.get("mounts")
    return {
        str(mount.get("destination")): mount["options"]
        for mount in (mounts if isinstance(mounts, list) else ())
        if isinstance(mount, dict) and isinstance(mount.get("options"), list)
    }


def _shown_by(entry: criu.mnt_entry, external: Sequence[criu.mnt_entry]) -> criu.mnt_entry | None:
    """The external mount that shows the most of what *entry* does, and all of it."""
    root = f"{text(entry.root).rstrip('/')}/"
    wider = [
        other
        for other in external
        if other.root_dev == entry.root_dev and root.startswith(f"{text(other.root).rstrip('/')}/")
    ]
    return max(wider, key=lambda other: len(other.root), default=None)


def _key(entry: criu.mnt_entry) -> str | None:
    if entry.ext_mount:  # before CRIU 3.0 the key stood in the root field
        return text(entry.root)
    return text(entry.ext_key) if entry.HasField("ext_key") else None


def _origin(entry: criu.mnt_entry) -> str:
    return text(entry.source if entry.root == b"/" else entry.root)


def _fs_type(mount: dict[str, Any]) -> str:
    # runc goes by the options: with (r)bind the type means nothing.
    if not {"bind", "rbind"}.isdisjoint(mount.get("options") or ()):
        return "bind"
    return str(mount.get("type", ""))


def _maps_itself(key: str, destination: str, sources: dict[str, str]) -> bool:
    """Whether runc gives the right source: the key's own mount, a mask, or a mount since moved."""
    if key not in sources:
        return False
    return key in {destination, _MASK} or destination not in sources
