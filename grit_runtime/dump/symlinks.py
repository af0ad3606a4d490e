"""Refusing names of a dump's files that lead through symbolic links of the new pod.

The kernel resolves a name before CRIU writes it down, so a genuine name leads through none. CRIU
opens it again as root, in the container's mounts, but with descriptors of its own that lead to the
node: through a link to /proc/self/fd a forged name would reach all that these reach.

Spec: checkpoint-restore/criu criu/files-reg.c open_path and do_open_reg_noseek, criu/servicefd.c
@2cf8f13, criu/fsnotify.c get_mark_path; proc_pid(5).
"""

from __future__ import annotations

import os
import stat

from grit_runtime.errors import LinkError
from grit_runtime.model import mount_check
from grit_runtime.model.mount_plan import dumped_mounts
from grit_runtime.model.paths import nearest_mount
from grit_runtime.startup.named import NamedTuple
from grit_runtime.wire.criu_image import text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from grit_runtime.model.dump import Dump
    from grit_runtime.model.live_pod import LivePod
    from grit_runtime.proto import criu_pb2 as criu

_PROC, _TMPFS = 1, 5  # enum fstype of mnt.proto
_LINKS_OF_TASK = frozenset({"cwd", "root", "exe"})
_LINK_DIRS_OF_TASK = frozenset({"fd", "map_files", "ns"})


class Tree(NamedTuple):
    """A mount, and whether a path *below* its destination is a link.

    *source* is its path on this node, None if its content is in the dump.
    """

    destination: str
    source: str | None
    is_link: Callable[[str], bool]


def check(
    rootfs_dir: str, dump: Dump, live: LivePod, user: Callable[[int], str] = "file {}".format
) -> None:
    """PrivilegeError at the first file whose name leads through a link; *user* names its user.

    The rw layer and the captured volumes must be in place: they bring links too.
    """
    by_place = {tree.destination: tree for tree in trees(rootfs_dir, dump, live)}
    known: dict[str, bool] = {"/": False}
    for file, name in _names(dump):
        parts = [part for part in name.split("/") if part not in {"", "."}]
        if file.reg.flags & os.O_NOFOLLOW:  # the link itself is open
            parts = parts[:-1]
        for end in range(1, len(parts) + 1):
            path = "/" + "/".join(parts[:end])
            if path not in known:
                known[path] = _is_link(path, by_place)
            if known[path]:
                raise LinkError(
                    f"{user(file.id)}: {name!r} leads through the link {path}; "
                    "expected a resolved name"
                )
    _check_parts(dump, by_place["/"].is_link)


def _check_parts(dump: Dump, is_link_of_root: Callable[[str], bool]) -> None:
    """Check mounts that show a part of the root or of a tmpfs: CRIU follows links to bind them.

    PrivilegeError at the first mount whose path there leads through a link.
    """
    (root,) = (entry for entry in dump.mounts if entry.mountpoint == b"/")
    for entry in dump.mounts:
        is_link = None
        if mount_check.is_part_of(entry, root):
            is_link = is_link_of_root
        elif entry.fstype == _TMPFS and not entry.HasField("ext_key"):
            is_link = _in_tmpfs(dump, entry)
        parts = [part for part in text(entry.root).split("/") if part]
        paths = ("/".join(parts[: end + 1]) for end in range(len(parts)))
        if is_link is not None and any(map(is_link, paths)):
            raise LinkError(
                f"mount {text(entry.mountpoint)}: shows {text(entry.root)}, which leads through a "
                "link; expected a resolved name"
            )


def _names(dump: Dump) -> Iterator[tuple[criu.file_entry, str]]:
    """The dump's files, each with the name that it has or watches.

    PrivilegeError for a watch without a name: its handle could open a file outside the container.
    """
    for file in dump.files:
        if file.HasField("reg"):
            yield file, text(file.reg.name)
        for watch in file.ify.wd:
            if not watch.f_handle.HasField("path"):
                raise LinkError(
                    f"file {file.id}: watches inode {watch.i_ino} by its handle; expected a name"
                )
            yield file, text(watch.f_handle.path)


def trees(rootfs_dir: str, dump: Dump, live: LivePod) -> list[Tree]:
    """The root and the mounts of the dump whose links are known before they are mounted."""
    sources = {mount.destination: mount.source for mount in live.mounts if mount.fs_type == "bind"}
    known = [Tree("/", rootfs_dir, _in_directory(rootfs_dir))]
    for mount, entry in zip(dumped_mounts(dump.mounts), dump.mounts, strict=True):
        place = mount.destination
        if mount.key is not None and place in sources:
            known.append(Tree(place, sources[place], _in_directory(sources[place])))
        elif entry.fstype == _PROC:
            known.append(Tree(place, None, _in_proc))
        elif entry.fstype == _TMPFS:
            known.append(Tree(place, None, _in_tmpfs(dump, entry)))
    return known


def _is_link(path: str, by_place: dict[str, Tree]) -> bool:
    """Whether *path* is a link in the nearest mount above it; a mountpoint itself is not one."""
    if path in by_place:
        return False
    place = nearest_mount(path, by_place)
    return by_place[place].is_link(path.removeprefix(place).lstrip("/"))


def _in_directory(directory: str) -> Callable[[str], bool]:
    def is_link(below: str) -> bool:
        try:
            return stat.S_ISLNK(os.lstat(f"{directory}/{below}").st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    return is_link


def _in_tmpfs(dump: Dump, entry: criu.mnt_entry) -> Callable[[str], bool]:
    names = (f"tmpfs-dev-{entry.root_dev}.tar.gz.img", f"tmpfs-{entry.mnt_id}.tar.gz.img")
    links = frozenset(link for name in names for link in dump.links.get(name, ()))
    return lambda below: os.fsencode(below) in links


def _in_proc(below: str) -> bool:
    """Whether a path in proc is a link.

    For a process or a thread, proc_pid(5) lists the links; all else is as in this node's /proc.
    Names that are links at the top, such as mounts and net, are files and directories there.
    """
    number, *rest = below.split("/")
    if not number.isdecimal():
        return os.path.islink(f"/proc/{below}")
    if rest[:1] == ["task"]:
        rest = rest[2:]
    is_entry = len(rest) == 2 and rest[0] in _LINK_DIRS_OF_TASK
    return is_entry or (len(rest) == 1 and rest[0] in _LINKS_OF_TASK)
