"""Where an overlay keeps its changes, from mountinfo's text and from real mounts."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from grit_runtime.errors import FailedPreconditionError, NotFoundError
from grit_runtime.host import overlay
from tests.host import overlays

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")

LINE = "45 27 0:39 / {path} rw,relatime shared:3 - {fs_type} overlay rw,{options}\n"


def mountinfo(tmp_path: Path, *lines: str) -> str:
    path = tmp_path / "mountinfo"
    path.write_text("".join(lines))
    return os.fspath(path)


def line(path: Path, options: str, fs_type: str = "overlay") -> str:
    return LINE.format(path=path, fs_type=fs_type, options=options)


def test_mountinfo_is_decoded() -> None:
    assert overlay.parse_mountinfo(
        b"45 27 0:39 /r /m\\040n\\134 rw,noatime shared:1 master:2 - fuse.x dev\\040x rw,a=b=c,d\n"
        b"46 27 0:4 / / rw - proc proc rw\n"
    ) == [
        overlay.MountInfo("/m n\\", "fuse.x", {"rw": "", "a": "b=c", "d": ""}),
        overlay.MountInfo("/", "proc", {"rw": ""}),
    ]


def test_the_upper_directory_is_the_topmost_mounts(tmp_path: Path) -> None:
    root = tmp_path / "root"
    path = mountinfo(
        tmp_path,
        line(root, "lowerdir=/l,upperdir=/first,workdir=/w"),
        line(tmp_path / "other", "upperdir=/other"),
        line(root, "lowerdir=/l:/m,upperdir=/a\\054b/fs,workdir=/w"),
    )
    assert overlay.upper_dir(os.fspath(root), mountinfo_path=path) == "/a,b/fs"


def test_a_rootfs_is_found_through_links(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "root")
    path = mountinfo(tmp_path, line(tmp_path / "root", "upperdir=/u"))
    assert overlay.upper_dir(os.fspath(tmp_path / "link"), mountinfo_path=path) == "/u"


@pytest.mark.parametrize(
    ("options", "fs_type", "reason"),
    [
        ("x", "ext4", "is a mount of type ext4, expected overlay"),
        ("lowerdir=/a:/b", "overlay", "upperdir is '', expected an absolute path"),
        ("upperdir=u", "overlay", "upperdir is 'u', expected an absolute path"),
        ("upperdir=/u,userxattr", "overlay", "upperdir is '/u' with userxattr, expected"),
    ],
)
def test_a_rootfs_without_a_usable_upper_directory_is_refused(
    tmp_path: Path, options: str, fs_type: str, reason: str
) -> None:
    path = mountinfo(tmp_path, line(tmp_path / "root", options, fs_type))
    with pytest.raises(FailedPreconditionError, match=re.escape(reason)):
        overlay.upper_dir(os.fspath(tmp_path / "root"), mountinfo_path=path)


def test_a_rootfs_that_is_not_mounted_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="root: nothing is mounted there"):
        overlay.upper_dir(os.fspath(tmp_path / "root"))


@pytest.fixture
def odd_dir(tmp_path: Path) -> Path:
    """A directory whose name has everything that options and mountinfo escape."""
    path = tmp_path / "a b,c:d\\e"
    for name in ("one", "two", "upper", "work", "merged", "both"):
        (path / name).mkdir(parents=True)
    (path / "one" / "x").write_text("one")
    (path / "two" / "x").write_text("two")
    (path / "two" / "y").write_text("two")
    return path


@pytest.fixture
def merged(odd_dir: Path) -> Iterator[Path]:
    one, upper, work, path = (odd_dir / name for name in ("one", "upper", "work", "merged"))
    overlays.mount(one, upper, work, path)
    yield path
    overlay.unmount(os.fspath(path))


@needs_root
def test_a_mounted_overlays_upper_directory_is_found(merged: Path, odd_dir: Path) -> None:
    (merged / "new").write_text("new")
    upper = overlay.upper_dir(os.fspath(merged))
    assert upper == os.fspath(odd_dir / "upper")
    assert os.listdir(upper) == ["new"]


@needs_root
def test_an_overlay_is_emptied_of_its_changes(merged: Path, odd_dir: Path) -> None:
    (merged / "x").unlink()
    (merged / "new").mkdir()
    (merged / "new" / "file").write_text("new")
    overlay.empty(os.fspath(merged))
    assert {path.name: path.read_text() for path in merged.iterdir()} == {"x": "one"}
    assert list((odd_dir / "upper").iterdir()) == []
    (merged / "x").write_text("changed")
    assert (odd_dir / "one" / "x").read_text() == "one"


@needs_root
def test_an_overlay_in_use_is_not_emptied(merged: Path) -> None:
    (merged / "new").write_text("new")
    with (merged / "new").open(), pytest.raises(OSError, match="umount2: Device or resource busy"):
        overlay.empty(os.fspath(merged))
    assert (merged / "new").read_text() == "new"


@needs_root
def test_layers_are_mounted_one_over_the_other_and_read_only(odd_dir: Path) -> None:
    both = odd_dir / "both"
    two_fd = os.open(odd_dir / "two", os.O_RDONLY)
    overlay.mount_layers([os.fspath(odd_dir / "one"), f"/proc/self/fd/{two_fd}"], os.fspath(both))
    os.close(two_fd)
    try:
        assert {path.name: path.read_text() for path in both.iterdir()} == {"x": "one", "y": "two"}
        with pytest.raises(OSError, match="Read-only file system"):
            (both / "x").write_text("")
    finally:
        overlay.unmount(os.fspath(both))
    assert list(both.iterdir()) == []


@needs_root
def test_a_mount_that_fails_names_call_and_path(odd_dir: Path) -> None:
    with pytest.raises(FileNotFoundError, match="mount: No such file or directory") as caught:
        overlay.mount_layers([os.fspath(odd_dir / "one"), "/no/such"], os.fspath(odd_dir / "both"))
    assert caught.value.filename == os.fspath(odd_dir / "both")
    with pytest.raises(OSError, match="umount2: Invalid argument"):
        overlay.unmount(os.fspath(odd_dir / "both"))
