"""A directory of images as the checks see it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from grit_runtime.dump import images
from grit_runtime.errors import ImageError
from grit_runtime.files import confine
from grit_runtime.model.dump import Device
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image
from grit_runtime.wire.criu_image import Image

DIRECT = Path(__file__).parent.parent / "goldens/criu-4.2/direct"


@pytest.mark.parametrize(
    ("mode", "device"),
    [
        (0o020644, Device("c", 1, 3)),
        (0o060600, Device("b", 1, 3)),
        (0o100644, None),
        (0o010644, None),
    ],
)
def test_a_deleted_device_node_that_a_task_holds_is_one_of_the_dumps(
    tmp_path: Path, mode: int, device: Device | None
) -> None:
    shutil.copytree(DIRECT, tmp_path / "images")
    ghost = criu.ghost_file_entry(uid=0, gid=0, mode=mode, rdev=os.makedev(1, 3))
    name = "ghost-file-1.img"
    image = Image(name, criu_image.kind_of(name).magics, (ghost.SerializeToString(),))
    (tmp_path / "images" / name).write_bytes(criu_image.serialize(image) + b"content")
    fd = confine.open_dir(str(tmp_path / "images"))
    found = dict(images.read(fd).devices)
    os.close(fd)
    assert found.get(name) == device


def pagemap(name: str, pages_id: int, *entries: criu.pagemap_entry) -> Image:
    head = criu.pagemap_head(pages_id=pages_id)
    payloads = [message.SerializeToString() for message in (head, *entries)]
    return Image(name, criu_image.kind_of(name).magics, tuple(payloads))


@pytest.mark.parametrize(
    ("entry", "pages"),
    [
        (criu.pagemap_entry(vaddr=0, compat_nr_pages=3), 3),
        (criu.pagemap_entry(vaddr=0, compat_nr_pages=3, in_parent=True), 0),
        (criu.pagemap_entry(vaddr=0, compat_nr_pages=3, flags=4), 3),
        (criu.pagemap_entry(vaddr=0, compat_nr_pages=3, flags=1), 0),
        (criu.pagemap_entry(vaddr=0, compat_nr_pages=0, flags=4, nr_pages=3), 3),
    ],
)
def test_a_map_says_how_long_its_memory_must_be(
    tmp_path: Path, entry: criu.pagemap_entry, pages: int
) -> None:
    one = criu.pagemap_entry(vaddr=1 << 20, compat_nr_pages=1, flags=4)
    for image in (pagemap("pagemap-1.img", 7, one, entry), pagemap("pagemap-shmem-5.img", 7, one)):
        (tmp_path / image.name).write_bytes(criu_image.serialize(image))
    size_bytes = (2 + pages) * os.sysconf("SC_PAGESIZE")
    memory = tmp_path / "pages-7.img"
    fd = confine.open_dir(str(tmp_path))
    names = (*sorted(os.listdir(tmp_path)), memory.name)
    memory.write_bytes(bytes(size_bytes))
    images.check_pages(fd, names)
    memory.write_bytes(bytes(size_bytes - 1))
    with pytest.raises(ImageError, match=f"pages-7.img: {size_bytes - 1} bytes, expected"):
        images.check_pages(fd, names)
    memory.unlink()
    with pytest.raises(ImageError, match=r"pages-7\.img is missing"):
        images.check_pages(fd, names[:-1])
    os.close(fd)


@pytest.mark.parametrize("unsent", [None, 0, 5])
def test_bytes_that_were_never_sent_are_told_from_those_without_an_answer(
    tmp_path: Path, unsent: int | None
) -> None:
    stream = criu.tcp_stream_entry(inq_len=0, inq_seq=1, outq_len=9, outq_seq=2)
    stream.opt_mask, stream.snd_wscale, stream.mss_clamp = 0, 7, 1460
    if unsent is not None:
        stream.unsq_len = unsent
    name = "tcp-stream-8c1c8.img"
    image = Image(name, criu_image.kind_of(name).magics, (stream.SerializeToString(),))
    (tmp_path / name).write_bytes(criu_image.serialize(image) + bytes(9))
    fd = confine.open_dir(str(tmp_path))
    assert images.has_unsent_data(fd, (name,)) == bool(unsent)
    assert not images.has_unsent_data(fd, ())
    os.close(fd)
