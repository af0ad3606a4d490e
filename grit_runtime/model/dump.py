"""One container's dump, as CRIU's metadata images have it. Pure."""

from __future__ import annotations

from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from grit_runtime.proto import criu_pb2 as criu

ALIVE, DEAD, STOPPED = 1, 2, 3  # task_state: compel/include/uapi/task-state.h


class Device(NamedTuple):
    """A device node as the OCI runtime spec names one: *type* is "c" or "b"."""

    type: str
    major: int
    minor: int


class Dump(NamedTuple):
    """One container's metadata images, decoded; by the container's pid if there are several.

    *cores* has every thread. *devices* are the device nodes in the archives of tmpfs, by name;
    *links* are the paths of the symbolic links in them, by the archive's name.
    """

    names: tuple[str, ...]
    inventory: criu.inventory_entry
    tasks: tuple[criu.pstree_entry, ...]
    cores: Mapping[int, criu.core_entry]
    ids: Mapping[int, criu.task_kobj_ids_entry]
    mounts: tuple[criu.mnt_entry, ...]
    files: tuple[criu.file_entry, ...]
    remaps: tuple[criu.remap_file_path_entry, ...]
    devices: tuple[tuple[str, Device], ...]
    links: Mapping[str, frozenset[bytes]]
    seccomp: criu.seccomp_entry | None
    userns: criu.userns_entry | None
    apparmor: criu.apparmor_entry | None
    cgroup: criu.cgroup_entry | None


class DumpedThread(NamedTuple):
    """One thread of a live task, with its image's name for messages."""

    where: str
    core: criu.core_entry
    leader: criu.core_entry
