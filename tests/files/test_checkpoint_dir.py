"""Which directories and archives are a checkpoint, and of which containers."""

from __future__ import annotations

import io
import os
import tarfile
from contextlib import ExitStack

import pytest

from grit_runtime.errors import ImageError
from grit_runtime.files import checkpoint_dir, confine
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import manifest as manifests

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from grit_runtime.files.checkpoint_dir import Checkpoint


def dumped(directory: Path, *containers: str, inventory: bytes = b"a dump") -> None:
    for name in containers:
        images = directory / name / "checkpoint"
        images.mkdir(parents=True)
        (images / "inventory.img").write_bytes(inventory)


def read(directory: Path) -> Checkpoint:
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
    assert [one.name for one in found.manifest.containers] == ["main", "sidecar"]


def test_the_name_of_a_dump_is_its_own_wherever_it_is_copied(tmp_path: Path) -> None:
    dumped(tmp_path / "one", "main")
    dumped(tmp_path / "copy", "main")
    dumped(tmp_path / "other", "main", inventory=b"later!")
    one, copy, other = (read(tmp_path / name).sha256 for name in ("one", "copy", "other"))
    assert one == copy != other


@pytest.mark.parametrize("present", ["main/config.dump", "sidecar-work"])
def test_what_is_still_written_or_copied_is_incomplete(tmp_path: Path, present: str) -> None:
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


def packed(directory: Path, files: dict[str, bytes]) -> int:
    """Fd of an archive of *files*."""
    path = directory / "archive.tar"
    with tarfile.open(path, "w") as tar:
        made: set[str] = set()
        for name, data in files.items():
            parent = name.rpartition("/")[0]
            if parent and parent not in made:
                made.add(parent)
                entry = tarfile.TarInfo(parent)
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return os.open(path, os.O_RDONLY)


SPEC = b'{"annotations": {"io.kubernetes.cri.container-name": "main"}}'
IMAGES = {"checkpoint/inventory.img": b"a dump"}


@pytest.mark.parametrize(
    ("spec", "container", "listed"),
    [
        (SPEC, "main", "main"),
        (b"{}", "main", "main"),
        (SPEC, "sidecar", "_"),
        (SPEC, None, "main"),
        (b"{}", None, "_"),
    ],
    ids=["the one that asks", "it does not say", "another", "nobody asks", "nobody knows"],
)
def test_an_archive_is_of_the_container_that_its_spec_names(
    tmp_path: Path, spec: bytes, container: str | None, listed: str
) -> None:
    archive_fd = packed(tmp_path, {"spec.dump": spec, **IMAGES})
    with ExitStack() as stack:
        _, found = checkpoint_dir.unpack(archive_fd, str(tmp_path / "private"), container, stack)
    assert [one.name for one in found.manifest.containers] == [listed]
    assert (tmp_path / "private" / listed / "checkpoint/inventory.img").read_bytes() == b"a dump"
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("missing", ["spec.dump", "checkpoint/inventory.img"])
def test_an_archive_of_something_else_is_refused(tmp_path: Path, missing: str) -> None:
    files = {name: data for name, data in {"spec.dump": SPEC, **IMAGES}.items() if name != missing}
    with pytest.raises(ImageError, match=f"it has no {missing}"), ExitStack() as stack:
        checkpoint_dir.unpack(packed(tmp_path, files), str(tmp_path / "private"), "main", stack)


def test_an_archive_of_a_sealed_checkpoint_is_that(tmp_path: Path) -> None:
    manifest = manifests.dump(manifests.for_foreign_dump(["main"], {}))
    archive_fd = packed(tmp_path, {"manifest.json": manifest, "main/spec.dump": SPEC})
    with ExitStack() as stack:
        dir_fd, found = checkpoint_dir.unpack(archive_fd, str(tmp_path / "private"), "main", stack)
        assert found.is_verifiable
        assert checkpoint_dir.differences(dir_fd, found.manifest) == [
            "main/spec.dump is not in the manifest"
        ]


def test_upstreams_sentinel_belongs_to_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "main").mkdir()
    (tmp_path / "main/pages-1.img").write_bytes(b"a page")
    manifest = manifests.for_foreign_dump([], {})
    sealed = manifest._replace(files=checkpoint_dir.contents(str(tmp_path)))
    with closing_fd(confine.open_dir(str(tmp_path))) as dir_fd:
        checkpoint_dir.write_sentinel(dir_fd)
        assert (tmp_path / "download-state").read_text() == "Transfer Completed\n"
        assert checkpoint_dir.differences(dir_fd, sealed) == []
        (tmp_path / "main/download-state").touch()
        wrong = checkpoint_dir.differences(dir_fd, sealed)
    assert wrong == ["main/download-state is not in the manifest"]


def test_the_sentinel_is_written_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "other").write_text("kept")
    (tmp_path / "checkpoint/download-state").symlink_to("../other")
    with (
        closing_fd(confine.open_dir(str(tmp_path / "checkpoint"))) as dir_fd,
        pytest.raises(ImageError, match="is a symbolic link"),
    ):
        checkpoint_dir.write_sentinel(dir_fd)
    assert (tmp_path / "other").read_text() == "kept"
