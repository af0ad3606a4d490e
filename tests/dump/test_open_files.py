"""Files of a real dump that the new pod has not, or has otherwise."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from grit_runtime.dump import images, open_files
from grit_runtime.errors import FailedPreconditionError
from grit_runtime.files import confine
from grit_runtime.model.live_pod import LivePod
from grit_runtime.model.mount_plan import LiveMount
from grit_runtime.wire.criu_image import text

if TYPE_CHECKING:
    from grit_runtime.model.dump import Dump

GOLDEN = Path(__file__).parent.parent / "goldens/criu-4.2/root"
PROGRAM = "/usr/bin/python3.14"


class Laid(NamedTuple):
    """All the files of the dump as they were; what lies below *volume* is /data's."""

    dump: Dump
    root: Path
    volume: Path

    def check(self) -> None:
        mount = LiveMount("/data", str(self.volume), "bind", ())
        live = LivePod({}, (mount,), frozenset(), frozenset())
        open_files.check(str(self.root), self.dump, live, image="busybox:1")


@pytest.fixture
def laid(tmp_path: Path) -> Laid:
    laid = Laid(images.read(confine.open_dir(str(GOLDEN))), tmp_path / "root", tmp_path / "volume")
    for path in (laid.root, laid.volume):
        path.mkdir(mode=0o755)
    for file in (file.reg for file in laid.dump.files if file.HasField("reg")):
        name = text(file.name)
        below = name.removeprefix("/data/").strip("/")
        path = (laid.volume if name.startswith("/data/") else laid.root) / below
        path.parent.mkdir(parents=True, exist_ok=True)
        if file.HasField("size"):
            path.touch()
            os.truncate(path, file.size)
            path.chmod(file.mode & 0o7777)
    return laid


def test_all_as_it_was_is_taken(laid: Laid) -> None:
    laid.check()


def test_a_program_of_another_image_is_named_with_the_image(laid: Laid) -> None:
    os.truncate(laid.root / PROGRAM.strip("/"), 5)
    wrong = f"^file {PROGRAM} is 5 bytes long, was 8264008; .* image busybox:1 in the new pod"
    with pytest.raises(FailedPreconditionError, match=wrong):
        laid.check()


def test_a_file_of_a_volume_is_named_with_its_mount(laid: Laid) -> None:
    (laid.volume / "count").unlink()
    wrong = "^file /data/count is missing, was 1 bytes long; the volume at /data is not part"
    with pytest.raises(FailedPreconditionError, match=wrong):
        laid.check()


def test_what_lies_where_nobody_can_look_yet_is_left_to_criu(laid: Laid) -> None:
    (laid.root / "dev/shm/seg").unlink()  # a mount of its own, that this pod's spec does not name
    laid.check()
