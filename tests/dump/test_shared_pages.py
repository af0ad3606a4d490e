"""What a child has in common with its parent, of images in a directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from grit_runtime.dump import shared_pages
from grit_runtime.model.dump import Dump
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image
from grit_runtime.wire.criu_image import Image, Pages

if TYPE_CHECKING:
    from pathlib import Path

    from google.protobuf.message import Message

PAGE = 4096
START = 0x7F0000000000
ANONYMOUS = 0x22  # MAP_PRIVATE | MAP_ANONYMOUS


def write(directory: Path, name: str, *entries: Message) -> None:
    payloads = tuple(entry.SerializeToString() for entry in entries)
    image = Image(name, criu_image.kind_of(name).magics, payloads)
    (directory / name).write_bytes(criu_image.serialize(image))


def task(directory: Path, pid: int, content: dict[int, bytes], *, pages: int = 4) -> None:
    """A task with one area of *pages*, of which those in *content* are dumped."""
    area = criu.vma_entry(
        start=START, end=START + pages * PAGE, pgoff=0, shmid=pid, prot=3, flags=ANONYMOUS
    )
    area.status = 1 << 9 | 1
    fields = ("mm_arg_start", "mm_arg_end", "mm_env_start", "mm_env_end", "exe_file_id")
    write(directory, f"mm-{pid}.img", criu.mm_entry(vmas=[area], **dict.fromkeys(fields, 0)))  # type: ignore[arg-type]
    present = [Pages(START + number * PAGE, 1) for number in sorted(content)]
    image = criu_image.pagemap(f"pagemap-{pid}.img", pid, present)
    (directory / image.name).write_bytes(criu_image.serialize(image))
    data = b"".join(content[number] * PAGE for number in sorted(content))
    (directory / f"pages-{pid}.img").write_bytes(data)


def shared(directory: Path) -> int:
    tasks = [criu.pstree_entry(pid=1, ppid=0, pgid=1, sid=1, threads=[1])]
    tasks.append(criu.pstree_entry(pid=2, ppid=1, pgid=1, sid=1, threads=[2]))
    dump = Dump(
        names=tuple(os.listdir(directory)),
        inventory=criu.inventory_entry(),
        tasks=tuple(tasks),
        cores={},
        ids={},
        mounts=(),
        files=(),
        remaps=(),
        devices=(),
        links={},
        seccomp=None,
        userns=None,
        apparmor=None,
        cgroup=None,
    )
    directory_fd = os.open(directory, os.O_RDONLY)
    try:
        return shared_pages.size_bytes(directory_fd, dump)
    finally:
        os.close(directory_fd)


@pytest.mark.parametrize(
    ("child", "pages"),
    [
        ({0: b"a", 2: b"c", 3: b"d"}, 3),
        ({0: b"a", 2: b"x"}, 1),
        ({1: b"a"}, 0),
        ({}, 0),
    ],
)
def test_equal_pages_at_the_same_place_are_one(
    tmp_path: Path, child: dict[int, bytes], pages: int
) -> None:
    task(tmp_path, 1, {0: b"a", 2: b"c", 3: b"d"})
    task(tmp_path, 2, child)
    assert shared(tmp_path) == pages * PAGE


def test_an_area_that_is_another_in_the_child_is_not_inherited(tmp_path: Path) -> None:
    task(tmp_path, 1, {0: b"a"})
    task(tmp_path, 2, {0: b"a"}, pages=3)
    assert shared(tmp_path) == 0


def test_a_zombie_has_no_memory(tmp_path: Path) -> None:
    task(tmp_path, 1, {0: b"a"})
    assert shared(tmp_path) == 0
