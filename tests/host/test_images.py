"""A directory of images as the checks see it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from grit_runtime.host import confine, images
from grit_runtime.model.privilege import Device
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
