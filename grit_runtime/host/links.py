"""Whether the names of a dump's files lead through symbolic links of the new pod.

The kernel resolves a name before CRIU writes it down, so a true one has none. CRIU opens it again
as root, in the container's mounts, but with descriptors of its own that lead to the node: through a
link to /proc/self/fd a forged name would reach all that they do.

Spec: checkpoint-restore/criu criu/files-reg.c open_path and do_open_reg_noseek, criu/servicefd.c
@2cf8f13, criu/fsnotify.c get_mark_path; proc_pid(5).
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from grit_runtime.errors import PrivilegeError
from grit_runtime.model.mount_plan import dumped_mounts
from grit_runtime.model.paths import above
from grit_runtime.wire.criu_image import text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from grit_runtime.model.privilege import Dump, Live
    from grit_runtime.proto import criu_pb2 as criu

_PROC, _TMPFS = 1, 5  # enum fstype of mnt.proto
_PROC_LINKS = frozenset({"self", "thread-self", "mounts", "net", "cwd", "root", "exe"})
_PROC_LINK_DIRS = frozenset({"fd", "map_files", "ns"})


class Tree(NamedTuple):
    """A mount: whether the path *below* its destination is a link.

    *source* is where it lies on this node, None if what it will hold is in the dump.
    """

    destination: str
    source: str | None
    is_link: Callable[[str], bool]


def check(rootfs_dir: str, dump: Dump, live: Live) -> None:
    """PrivilegeError at the first file whose name leads through a link.

    The rw layer must be in place: it brings links too.
    """
    by_place = {tree.destination: tree for tree in trees(rootfs_dir, dump, live)}
    known: dict[str, bool] = {"/": False}
    for file, name in _names(dump):
        parts = [part for part in name.split("/") if part not in {"", "."}]
        if file.reg.flags & os.O_NOFOLLOW:  # it is the link itself
            parts = parts[:-1]
        for end in range(1, len(parts) + 1):
            path = "/" + "/".join(parts[:end])
            if path not in known:
                known[path] = _is_link(path, by_place)
            if known[path]:
                raise PrivilegeError(
                    f"file {file.id}: {name!r} leads through the link {path}; "
                    "expected a resolved name"
                )


def _names(dump: Dump) -> Iterator[tuple[criu.file_entry, str]]:
    """Files with the names that they have or watch.

    PrivilegeError for a watch without one: its handle could open what is not in the container.
    """
    for file in dump.files:
        if file.HasField("reg"):
            yield file, text(file.reg.name)
        for watch in file.ify.wd:
            if not watch.f_handle.HasField("path"):
                raise PrivilegeError(
                    f"file {file.id}: watches inode {watch.i_ino} by its handle; expected a name"
                )
            yield file, text(watch.f_handle.path)


def trees(rootfs_dir: str, dump: Dump, live: Live) -> list[Tree]:
    """The root and the mounts of the dump that can be looked into before they are mounted."""
    sources = {mount.destination: mount.source for mount in live.mounts if mount.fs_type == "bind"}
    found = [Tree("/", rootfs_dir, _in_directory(rootfs_dir))]
    for mount, entry in zip(dumped_mounts(dump.mounts), dump.mounts, strict=True):
        place = mount.destination
        if mount.key is not None and place in sources:
            found.append(Tree(place, sources[place], _in_directory(sources[place])))
        elif entry.fstype == _PROC:
            found.append(Tree(place, None, _in_proc))
        elif entry.fstype == _TMPFS:
            names = (f"tmpfs-dev-{entry.root_dev}.tar.gz.img", f"tmpfs-{entry.mnt_id}.tar.gz.img")
            links = frozenset(link for name in names for link in dump.links.get(name, ()))
            found.append(Tree(place, None, _among(links)))
    return found


def _is_link(path: str, by_place: dict[str, Tree]) -> bool:
    """A mount's own place is none; what lies below is asked of the nearest mount above."""
    if path in by_place:
        return False
    place = above(path, by_place)
    return by_place[place].is_link(path.removeprefix(place).lstrip("/"))


def _in_directory(directory: str) -> Callable[[str], bool]:
    def is_link(below: str) -> bool:
        try:
            return stat.S_ISLNK(os.lstat(f"{directory}/{below}").st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    return is_link


def _among(links: frozenset[bytes]) -> Callable[[str], bool]:
    return lambda below: os.fsencode(below) in links


def _in_proc(below: str) -> bool:
    *parents, name = below.split("/")
    return name in _PROC_LINKS or (bool(parents) and parents[-1] in _PROC_LINK_DIRS)
