"""Files that a task has open though the name was deleted, of which another name is left.

CRIU gives such a file a name of its own for the restore to find it by, and takes that away again
when the dump has ended and the tasks go on. The copies of the file systems are made after that, so
the names are made once more, and stay until the copies are done.

Spec: checkpoint-restore/criu criu/files-reg.c create_link_remap, delete_link_remaps,
criu/include/image.h@2cf8f13; linkat(2), proc_pid_map_files(5).
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import NamedTuple

from grit_runtime.errors import FailedPreconditionError, ImageError
from grit_runtime.host import confine, gpu_facts, images
from grit_runtime.model.mount_plan import dumped_mounts
from grit_runtime.model.paths import above
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image
from grit_runtime.wire.criu_image import text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence, Set

    from grit_runtime.host.journal import Journal
    from grit_runtime.model.privilege import Dump

STEP = "link"

_REMAPS = "remap-fpath.img"
_LINKED = 0  # remap_type of remap-file-path.proto
_REG = 1  # fd_types of fdinfo.proto
_VMA_FILE = 1 << 6 | 1 << 7


class _Linked(NamedTuple):
    """A file by the name that CRIU gave it, and by the one that was deleted; both inside."""

    link: str
    deleted: str
    opened: str  # a link of /proc that leads to it


class Tasks(NamedTuple):
    """Those of a container, which are frozen, as the node numbers them; *init_pid* is the first."""

    init_pid: int
    pids: Set[int]


def keep(images_fd: int, tasks: Tasks, directories: Mapping[str, str], held: Journal) -> None:
    """Make the names anew that the dump of *tasks* relies on, each journalled for `drop`.

    *directories* are, by their places in the container, the mounts that are copied into the
    checkpoint. FailedPreconditionError for a file on another.
    """
    if _REMAPS not in os.listdir(images_fd):
        return
    remaps = criu_image.entries(images.load(images_fd, _REMAPS), criu.remap_file_path_entry)
    if all(remap.remap_type != _LINKED for remap in remaps):
        return
    dump = images.read(images_fd)
    places = {mount.destination for mount in dumped_mounts(dump.mounts)}
    for file in _linked(images_fd, dump, tasks.pids):
        place = above(file.link, places)
        if place not in directories:
            raise FailedPreconditionError(
                f"file {file.deleted} was deleted while it is open, but has another name on the "
                f"volume at {place}, which is not captured; close it, or have the volume captured "
                "(grit.dev/capture) if it is an emptyDir"
            )
        path = file.link.removeprefix(place).strip("/")
        held.record(STEP, directory=directories[place], path=path)
        *parents, name = file.link.strip("/").split("/")
        # By the tasks' own mounts: the kernel links nothing from one mount to another.
        parent_fd = confine.open_dir(f"/proc/{tasks.init_pid}/root", *parents)
        try:
            os.link(file.opened, name, dst_dir_fd=parent_fd, follow_symlinks=True)
        finally:
            os.close(parent_fd)


def drop(steps: Sequence[dict[str, str]]) -> None:
    """Remove what `keep` has made, as far as it is still there.

    Once thawed, a container may have removed the directory or put a link in its place.
    """
    for step in steps:
        if step["step"] != STEP:
            continue
        *parents, name = step["path"].split("/")
        with suppress(FileNotFoundError, ImageError):
            parent_fd = confine.open_dir(step["directory"], *parents)
            try:
                os.unlink(name, dir_fd=parent_fd)
            finally:
                os.close(parent_fd)


def _linked(images_fd: int, dump: Dump, pids: Set[int]) -> Iterator[_Linked]:
    files = {file.id: file.reg for file in dump.files if file.HasField("reg")}
    opened = dict(_opened(images_fd, dump, gpu_facts.pids_by_container_pid(sorted(pids))))
    for remap in dump.remaps:
        if remap.remap_type != _LINKED:
            continue
        try:
            link, deleted = files[remap.remap_id], files[remap.orig_id]
            yield _Linked(text(link.name), text(deleted.name), opened[remap.orig_id])
        except KeyError:
            raise ImageError(f"image remap-fpath.img: nobody has file {remap.orig_id}") from None


def _opened(images_fd: int, dump: Dump, pids: Mapping[int, int]) -> Iterator[tuple[int, str]]:
    """Of the dump's regular files: a link of /proc that leads to it."""
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
