"""Reading a directory of CRIU images: the metadata by which grit checks a dump.

Everything is opened without following links. What the images say is a claim, not a fact.
"""

from __future__ import annotations

import os
import stat
from typing import TypeVar

from google.protobuf.message import Message

from grit_runtime.errors import ImageError
from grit_runtime.files import confine
from grit_runtime.files.checkpoint_dir import PARENT
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model.dump import DEAD, Device, Dump
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image, tmpfs_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from grit_runtime.wire.criu_image import Image
    from grit_runtime.wire.tmpfs_image import SpecialFiles

M = TypeVar("M", bound=Message)
T = TypeVar("T")

_NODE_TYPES = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}
_GHOST_ENTRY_LIMIT_BYTES = 64 << 10
_STREAM_ENTRY_LIMIT_BYTES = 4 << 10
# criu/include/image.h
_VMA_FILE = 1 << 6 | 1 << 7
_VMA_AREA_SYSVIPC = 1 << 10


def read(images_fd: int) -> Dump:
    """Decode the metadata images in the directory; ImageError names a malformed file."""
    names = tuple(sorted(os.listdir(images_fd)))
    cores = _numbered(images_fd, names, "core", criu.core_entry)
    tasks = _only(images_fd, names, "pstree", criu.pstree_entry)
    _check_tasks(tasks, cores)
    tmpfs = _tmpfs(images_fd, names)
    return Dump(
        names=names,
        inventory=_only(images_fd, names, "inventory", criu.inventory_entry)[0],
        tasks=tuple(tasks),
        cores=cores,
        ids=_numbered(images_fd, names, "ids", criu.task_kobj_ids_entry),
        mounts=tuple(_only(images_fd, names, "mountpoints", criu.mnt_entry)),
        files=tuple(_any(images_fd, names, "files", criu.file_entry)),
        remaps=tuple(_any(images_fd, names, "remap-fpath", criu.remap_file_path_entry)),
        devices=(
            *((node.name, Device(*node[1:])) for files in tmpfs.values() for node in files.nodes),
            *_ghost_nodes(images_fd, names),
        ),
        links={name: files.links for name, files in tmpfs.items()},
        seccomp=_at_most_one(images_fd, names, "seccomp", criu.seccomp_entry),
        userns=_at_most_one(images_fd, names, "userns", criu.userns_entry),
        apparmor=_at_most_one(images_fd, names, "apparmor", criu.apparmor_entry),
        cgroup=_at_most_one(images_fd, names, "cgroup", criu.cgroup_entry),
    )


def with_rewritten(dump: Dump, rewritten: Mapping[str, bytes | None]) -> Dump:
    """The dump as CRIU sees it, with *rewritten* images instead of those in the directory."""
    cores = dict(dump.cores)
    mounts, files = dump.mounts, dump.files
    for name, data in rewritten.items():
        kind = name.removesuffix(".img").rstrip("0123456789").rstrip("-")
        if data is None or kind not in {"core", "mountpoints", "files"}:
            continue
        image = criu_image.parse(data, name=name)
        if kind == "core":
            number = int(name.removesuffix(".img").rpartition("-")[2])
            cores[number] = criu_image.entry(image, criu.core_entry)
        elif kind == "mountpoints":
            mounts = tuple(criu_image.entries(image, criu.mnt_entry))
        else:
            files = tuple(criu_image.entries(image, criu.file_entry))
    return dump._replace(cores=cores, mounts=mounts, files=files)


def load(images_fd: int, name: str) -> Image:
    """One image, with its entries still encoded."""
    with open(_open(images_fd, name), "rb") as file:
        return criu_image.parse(file.read(criu_image.MAX_IMAGE_BYTES + 1), name=name)


def pages_bytes(images_fd: int, names: tuple[str, ...]) -> int:
    """The size of the dumped memory."""
    return sum(
        os.stat(name, dir_fd=images_fd, follow_symlinks=False).st_size
        for name in named(names, "pages")
    ) + sum(_of_parent(pages_bytes, images_fd, names))


def check_pages(images_fd: int, names: tuple[str, ...]) -> None:
    """ImageError for memory that is shorter than its map: CRIU would retry the read for ever."""
    needed: dict[int, int] = {}
    for name in [*named(names, "pagemap"), *named(names, "pagemap-shmem")]:
        number, count = criu_image.pages(load(images_fd, name))
        needed[number] = needed.get(number, 0) + count * os.sysconf("SC_PAGESIZE")
    for number, size_bytes in needed.items():
        name = f"pages-{number}.img"
        if name not in names:
            raise ImageError(f"image {name} is missing; take the checkpoint again")
        found_bytes = os.stat(name, dir_fd=images_fd, follow_symlinks=False).st_size
        if found_bytes < size_bytes:
            raise ImageError(
                f"image {name}: {found_bytes} bytes, expected {size_bytes}; it is truncated"
            )
    _of_parent(check_pages, images_fd, names)


def attaches_sysv(images_fd: int) -> bool:
    """Whether a task of the dump has SysV shared memory in its address space."""
    names = tuple(sorted(os.listdir(images_fd)))
    return any(
        vma.status & _VMA_AREA_SYSVIPC
        for name in named(names, "mm")
        for vma in criu_image.entry(load(images_fd, name), criu.mm_entry).vmas
    )


def user(images_fd: int, dump: Dump, file_id: int) -> str:
    """For messages: a file of the dump by its number, and the first task that has it."""
    for task in dump.tasks:
        if file_id in _files_of(images_fd, dump, task.pid):
            name = dump.cores[task.pid].tc.comm.decode(errors="replace")
            return f"file {file_id} of task {task.pid} ({name})"
    return f"file {file_id}"


def _files_of(images_fd: int, dump: Dump, pid: int) -> Iterator[int]:
    """Numbers of the files that a task has open, works in or has mapped; none for a zombie."""
    if pid in dump.ids:
        name = f"fdinfo-{dump.ids[pid].files_id}.img"
        if name in dump.names:
            image = load(images_fd, name)
            yield from (fd.id for fd in criu_image.entries(image, criu.fdinfo_entry))
    if f"fs-{pid}.img" in dump.names:
        directories = criu_image.entry(load(images_fd, f"fs-{pid}.img"), criu.fs_entry)
        yield from (directories.cwd_id, directories.root_id)
    if f"mm-{pid}.img" in dump.names:
        memory = criu_image.entry(load(images_fd, f"mm-{pid}.img"), criu.mm_entry)
        yield memory.exe_file_id
        yield from (vma.shmid for vma in memory.vmas if vma.status & _VMA_FILE)


def has_unsent_data(images_fd: int, names: tuple[str, ...]) -> bool:
    """Whether a TCP connection of the dump has bytes that were never sent."""
    return any(stream(images_fd, name).unsq_len for name in names if name.startswith("tcp-stream-"))


def stream(images_fd: int, name: str) -> criu.tcp_stream_entry:
    """The entry of a TCP connection; its queued bytes follow in the same image."""
    with open(_open(images_fd, name), "rb") as file:
        image = criu_image.parse_beginning(file.read(_STREAM_ENTRY_LIMIT_BYTES), name=name)
    return criu_image.entry(image, criu.tcp_stream_entry)


def named(names: tuple[str, ...], kind: str) -> list[str]:
    """The images of one kind: ``pstree.img``, ``mountpoints-12.img``."""
    stems = [(name, name.removesuffix(".img").rstrip("0123456789")) for name in names]
    return [name for name, stem in stems if name.endswith(".img") and stem in (kind, f"{kind}-")]


def _of_parent(
    read_images: Callable[[int, tuple[str, ...]], T], images_fd: int, names: tuple[str, ...]
) -> list[T]:
    """What *read_images* returns for the parent images, which these add to, if there are any."""
    if PARENT not in names:
        return []
    with closing_fd(confine.descend(images_fd, (PARENT,))) as parent_fd:
        return [read_images(parent_fd, tuple(sorted(os.listdir(parent_fd))))]


def _check_tasks(tasks: list[criu.pstree_entry], cores: dict[int, criu.core_entry]) -> None:
    pids = [task.pid for task in tasks]
    if 0 in pids or len(set(pids)) != len(pids):
        raise ImageError("image pstree.img: expected each process once, with a pid above 0")
    for task in tasks:
        # CRIU writes only one core for a zombie; its list of threads holds no thread.
        dead = task.pid in cores and cores[task.pid].tc.task_state == DEAD
        for thread in [task.pid] if dead else [task.pid, *task.threads]:
            if thread not in cores:
                raise ImageError(f"image core-{thread}.img is missing; take the checkpoint again")


def _tmpfs(images_fd: int, names: tuple[str, ...]) -> dict[str, SpecialFiles]:
    """The content of the archives of tmpfs mounts (``tmpfs-dev-72.tar.gz.img``), by name."""
    archives = {}
    for name in names:
        if name.startswith("tmpfs-"):
            with open(_open(images_fd, name), "rb") as file:
                archives[name] = tmpfs_image.special_files(file.read, name=name)
    return archives


def _ghost_nodes(images_fd: int, names: tuple[str, ...]) -> Iterator[tuple[str, Device]]:
    """The device nodes that were deleted while a task held them open."""
    for name in named(names, "ghost-file"):
        with open(_open(images_fd, name), "rb") as file:
            image = criu_image.parse_beginning(file.read(_GHOST_ENTRY_LIMIT_BYTES), name=name)
        ghost = criu_image.entry(image, criu.ghost_file_entry)
        kind = _NODE_TYPES.get(stat.S_IFMT(ghost.mode))
        if kind:
            yield name, Device(kind, os.major(ghost.rdev), os.minor(ghost.rdev))


def _numbered(images_fd: int, names: tuple[str, ...], kind: str, message: type[M]) -> dict[int, M]:
    """The images of one kind by the number in their name; each has one entry."""
    numbered = {}
    for name in named(names, kind):
        number = name.removesuffix(".img").rpartition("-")[2]
        if name != f"{kind}-{int(number or 0)}.img":
            raise ImageError(f"image {name}: expected {kind}-N.img with a plain number")
        numbered[int(number)] = criu_image.entry(load(images_fd, name), message)
    return numbered


def _only(images_fd: int, names: tuple[str, ...], kind: str, message: type[M]) -> list[M]:
    """All entries, at least one, of the one image of this kind."""
    entries = _any(images_fd, names, kind, message)
    if not entries:
        raise ImageError(f"no {kind} image, or an empty one; take the checkpoint again")
    return entries


def _at_most_one(images_fd: int, names: tuple[str, ...], kind: str, message: type[M]) -> M | None:
    entries = _any(images_fd, names, kind, message)
    if len(entries) > 1:
        raise ImageError(f"image {kind}: {len(entries)} entries, expected one")
    return entries[0] if entries else None


def _any(images_fd: int, names: tuple[str, ...], kind: str, message: type[M]) -> list[M]:
    """All entries of the image of this kind, none if there is no such image."""
    files = named(names, kind)
    if len(files) > 1:
        raise ImageError(f"images {', '.join(files)}: expected one of a container's kind {kind}")
    return criu_image.entries(load(images_fd, files[0]), message) if files else []


def _open(images_fd: int, name: str) -> int:
    try:
        return confine.open_regular(images_fd, name)
    except FileNotFoundError:
        raise ImageError(f"image {name} is missing; take the checkpoint again") from None
