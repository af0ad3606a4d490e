"""A directory of CRIU images, read whole: the metadata that grit judges a dump by.

Everything is opened without following links. What is read is the dump's word, not the truth.
"""

from __future__ import annotations

import os
from typing import NamedTuple, TypeVar

from google.protobuf.message import Message

from grit_runtime.errors import ImageError
from grit_runtime.host import confine
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.wire.criu_image import Image

M = TypeVar("M", bound=Message)


class Dump(NamedTuple):
    """One container's images, decoded."""

    names: tuple[str, ...]
    inventory: criu.inventory_entry
    tasks: tuple[criu.pstree_entry, ...]
    cores: dict[int, criu.core_entry]  # by the thread's pid in the container
    mounts: tuple[criu.mnt_entry, ...]
    seccomp: criu.seccomp_entry | None


def read(images_fd: int) -> Dump:
    """Decode the metadata images in the directory; ImageError names the file that is not right."""
    names = tuple(sorted(os.listdir(images_fd)))
    tasks = _only(images_fd, names, "pstree", criu.pstree_entry)
    pids = [task.pid for task in tasks]
    if 0 in pids or len(set(pids)) != len(pids):
        raise ImageError("image pstree.img: expected each process once, with a pid above 0")
    threads = [thread for task in tasks for thread in (task.threads or [task.pid])]
    cores = {}
    for thread in threads:
        image = load(images_fd, f"core-{thread}.img")
        cores[thread] = criu_image.entry(image, criu.core_entry)
    seccomp = None
    if "seccomp.img" in names:
        seccomp = criu_image.entry(load(images_fd, "seccomp.img"), criu.seccomp_entry)
    return Dump(
        names=names,
        inventory=_only(images_fd, names, "inventory", criu.inventory_entry)[0],
        tasks=tuple(tasks),
        cores=cores,
        mounts=tuple(_only(images_fd, names, "mountpoints", criu.mnt_entry)),
        seccomp=seccomp,
    )


def load(images_fd: int, name: str) -> Image:
    """One image, its entries still encoded."""
    try:
        fd = confine.open_regular(images_fd, name)
    except FileNotFoundError:
        raise ImageError(f"image {name} is missing; take the checkpoint again") from None
    with open(fd, "rb") as file:
        return criu_image.parse(file.read(criu_image.MAX_IMAGE_BYTES + 1), name=name)


def named(names: tuple[str, ...], kind: str) -> list[str]:
    """The images of one kind: ``pstree.img``, ``mountpoints-12.img``."""
    return [
        name
        for name in names
        if name.endswith(".img")
        and name.removesuffix(".img").rstrip("0123456789") in (kind, kind + "-")
    ]


def _only(images_fd: int, names: tuple[str, ...], kind: str, message: type[M]) -> list[M]:
    """All entries of the one image of this kind; a container has one mount namespace."""
    files = named(names, kind)
    if len(files) != 1:
        raise ImageError(
            f"{len(files)} {kind} images, expected one; the directory is no complete dump of one "
            "container"
        )
    return criu_image.entries(load(images_fd, files[0]), message)
