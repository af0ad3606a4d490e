"""Which directories and archives are a checkpoint, and of which containers."""

from __future__ import annotations

import os

import pytest

from grit_runtime.errors import ImageError
from grit_runtime.host import checkpoint_dir, confine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from grit_runtime.host.checkpoint_dir import Sealed


def dumped(directory: Path, *containers: str, inventory: bytes = b"a dump") -> None:
    for name in containers:
        images = directory / name / "checkpoint"
        images.mkdir(parents=True)
        (images / "inventory.img").write_bytes(inventory)


def read(directory: Path) -> Sealed:
    fd = confine.open_dir(str(directory))
    try:
        return checkpoint_dir.read(fd, str(directory))
    finally:
        os.close(fd)


def test_without_a_manifest_the_directories_with_images_are_the_containers(tmp_path: Path) -> None:
    dumped(tmp_path, "main", "sidecar")
    (tmp_path / "logs").mkdir()
    (tmp_path / "download-state").touch()
    found = read(tmp_path)
    assert not found.is_verifiable
    assert [container.name for container in found.manifest.containers] == ["main", "sidecar"]


def test_the_name_of_a_dump_is_its_own_wherever_it_is_copied(tmp_path: Path) -> None:
    dumped(tmp_path / "one", "main")
    dumped(tmp_path / "copy", "main")
    dumped(tmp_path / "other", "main", inventory=b"later!")
    one, copy, other = (read(tmp_path / name).sha256 for name in ("one", "copy", "other"))
    assert one == copy != other


@pytest.mark.parametrize("present", ["main/config.dump", "sidecar-work", None])
def test_what_is_still_written_or_copied_is_incomplete(tmp_path: Path, present: str | None) -> None:
    if present is not None:
        dumped(tmp_path, "main")
        (tmp_path / present).touch()
    with pytest.raises(ImageError, match=r"is incomplete: it has no manifest\.json"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x", None),
        ("y", b"y.tar"),
        ("z", b"z.tar.gz"),
        ("x.tar", b"x.tar"),
        ("nothing", None),
        ("nothing.tar", None),
    ],
)
def test_an_archive_is_meant_by_its_name_or_where_no_directory_has_it(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    (tmp_path / "ns/x").mkdir(parents=True)
    for archive in ("x.tar", "y.tar", "z.tar.gz"):
        (tmp_path / "ns" / archive).write_bytes(archive.encode())
    fd = checkpoint_dir.open_archive(str(tmp_path), ("ns", name))
    assert (None if fd is None else os.read(fd, 100)) == content
    if fd is not None:
        os.close(fd)


def test_an_archive_is_not_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "secret.tar").touch()
    (tmp_path / "ns").mkdir()
    (tmp_path / "ns/x.tar").symlink_to("../secret.tar")
    with pytest.raises(ImageError, match="is a symbolic link"):
        checkpoint_dir.open_archive(str(tmp_path), ("ns", "x"))
