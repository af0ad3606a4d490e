"""Keeping the names that CRIU gives to files which a task has open under a deleted name.

Another link to such a file is left. CRIU links it to a name of its own for the restore to find, and
removes that name when the dump has ended and the tasks go on. The file systems are copied after
that, so grit makes the names again, and they stay until the copies are done.

Spec: checkpoint-restore/criu criu/files-reg.c create_link_remap, delete_link_remaps,
criu/include/image.h@2cf8f13; linkat(2), proc_pid_map_files(5).
"""

from __future__ import annotations

import os
from contextlib import suppress

from grit_runtime.dump import images
from grit_runtime.errors import ImageError, VolumeError
from grit_runtime.files import confine
from grit_runtime.host import procfs
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model.checkpoint_steps import Link
from grit_runtime.model.mount_plan import dumped_mounts
from grit_runtime.model.paths import nearest_mount
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.startup.named import NamedTuple
from grit_runtime.wire import criu_image
from grit_runtime.wire.criu_image import text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Set

    from grit_runtime.host.journal import Journal
    from grit_runtime.model.checkpoint_steps import Step
    from grit_runtime.model.dump import Dump

_REMAPS = "remap-fpath.img"
_LINKED = 0  # remap_type of remap-file-path.proto
_REG = 1  # fd_types of fdinfo.proto
_VMA_FILE = 1 << 6 | 1 << 7


class _Linked(NamedTuple):
    """A file: the name that CRIU gave it, and the deleted name, both as the container has them."""

    link: str
    deleted: str
    opened: str  # a link of /proc that leads to it


class Tasks(NamedTuple):
    """The frozen tasks of a container, by the node's pids; *init_pid* is the first."""

    init_pid: int
    pids: Set[int]


def keep(
    images_fd: int, tasks: Tasks, directories: Mapping[str, str], pod_journal: Journal[Step]
) -> None:
    """Make again the names that the dump of *tasks* relies on, each journalled for `drop`.

    *directories* are the mounts that are copied into the checkpoint, by their places in the
    container. FailedPreconditionError for a file on another mount.
    """
    if _REMAPS not in os.listdir(images_fd):
        return
    remaps = criu_image.entries(images.load(images_fd, _REMAPS), criu.remap_file_path_entry)
    if all(remap.remap_type != _LINKED for remap in remaps):
        return
    dump = images.read(images_fd)
    places = {mount.destination for mount in dumped_mounts(dump.mounts)}
    for file in _linked(images_fd, dump, tasks.pids):
        place = nearest_mount(file.link, places)
        if place not in directories:
            raise VolumeError(
                f"file {file.deleted} was deleted while it is open, but has another name on the "
                f"volume at {place}, which is not captured; close it, or have the volume captured "
                "(grit.dev/capture) if it is an emptyDir"
            )
        path = file.link.removeprefix(place).strip("/")
        pod_journal.record(Link(directories[place], path))
        *parents, name = file.link.strip("/").split("/")
        # By the tasks' own mounts: the kernel links nothing from one mount to another.
        with closing_fd(confine.open_dir(f"/proc/{tasks.init_pid}/root", *parents)) as parent_fd:
            os.link(file.opened, name, dst_dir_fd=parent_fd, follow_symlinks=True)


def drop(links: Iterable[Link]) -> None:
    """Remove the names that `keep` has made, as far as they are still there.

    Once thawed, a container may have removed the directory or put a link in its place.
    """
    for link in links:
        *parents, name = link.path.split("/")
        with (
            suppress(FileNotFoundError, ImageError),
            closing_fd(confine.open_dir(link.directory, *parents)) as parent_fd,
        ):
            os.unlink(name, dir_fd=parent_fd)


def _linked(images_fd: int, dump: Dump, pids: Set[int]) -> Iterator[_Linked]:
    files = {file.id: file.reg for file in dump.files if file.HasField("reg")}
    opened = dict(_opened(images_fd, dump, procfs.pids_by_container_pid(sorted(pids))))
    for remap in dump.remaps:
        if remap.remap_type != _LINKED:
            continue
        try:
            link, deleted = files[remap.remap_id], files[remap.orig_id]
            yield _Linked(text(link.name), text(deleted.name), opened[remap.orig_id])
        except KeyError:
            raise ImageError(f"image remap-fpath.img: nobody has file {remap.orig_id}") from None


def _opened(images_fd: int, dump: Dump, pids: Mapping[int, int]) -> Iterator[tuple[int, str]]:
    """The dump's regular files by number, each with a link of /proc that leads to it."""
    for inside, pid in pids.items():
        name = f"mm-{inside}.img"
        if name in dump.names:
            for vma in criu_image.entry(images.load(images_fd, name), criu.mm_entry).vmas:
                if vma.status & _VMA_FILE:
                    yield vma.shmid, f"/proc/{pid}/map_files/{vma.start:x}-{vma.end:x}"
        if inside in dump.ids:
            image = images.load(images_fd, f"fdinfo-{dump.ids[inside].files_id}.img")
            for fd in criu_image.entries(image, criu.fdinfo_entry):
                if fd.type == _REG:
                    yield fd.id, f"/proc/{pid}/fd/{fd.fd}"
