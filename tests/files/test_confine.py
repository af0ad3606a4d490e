"""Names are confined, symbolic links never followed, copies bounded."""

from __future__ import annotations

import os
import stat
import threading
import time
from typing import TYPE_CHECKING

import pytest

from grit_runtime.errors import ImageError, InvalidArgumentError
from grit_runtime.files import confine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to own files as root")

PATIENCE_S = 30
LIMITS = {"max_entries": 100, "max_bytes": 1 << 20}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """a/b/file, and links of every kind that must not be followed."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "secret").write_text("secret")
    inside = tmp_path / "in"
    (inside / "a" / "b").mkdir(parents=True)
    (inside / "a" / "b" / "file").write_text("content")
    (inside / "to-dir").symlink_to("../out")
    (inside / "to-file").symlink_to("a/b/file")
    (inside / "a" / "up").symlink_to("..")
    os.mkfifo(inside / "fifo")
    return inside


@pytest.fixture
def tree_fd(tree: Path) -> Iterator[int]:
    fd = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def descriptors() -> set[str]:
    return {name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}")}


def test_a_file_is_opened_through_its_directories(tree_fd: int) -> None:
    with open(confine.open_beneath(tree_fd, "a/b/file", os.O_RDONLY)) as file:
        assert file.read() == "content"


def test_a_directory_is_opened_by_names(tree: Path) -> None:
    fd = confine.open_dir(os.fspath(tree), "a", "b")
    try:
        assert os.listdir(fd) == ["file"]
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "path", ["", "/a", "a/", "a//b", ".", "./a", "..", "a/../a", "a/..", "a\0b", "/etc/passwd"]
)
def test_a_path_that_is_not_plain_names_is_refused(tree_fd: int, path: str) -> None:
    with pytest.raises(InvalidArgumentError, match="expected plain names"):
        confine.open_beneath(tree_fd, path, os.O_RDONLY)


@pytest.mark.parametrize("path", ["to-dir/secret", "to-file", "a/up/a", "a/up"])
def test_a_symbolic_link_is_refused_by_name(tree_fd: int, path: str) -> None:
    with pytest.raises(ImageError, match="is a symbolic link, expected"):
        confine.open_beneath(tree_fd, path, os.O_RDONLY)


def test_a_file_in_the_place_of_a_directory_is_refused(tree_fd: int) -> None:
    with pytest.raises(ImageError, match="'file' is a regular file, expected a directory"):
        confine.open_beneath(tree_fd, "a/b/file/x", os.O_RDONLY)


def test_a_missing_file_is_named_with_its_whole_path(tree_fd: int) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        confine.open_beneath(tree_fd, "a/b/none", os.O_RDONLY)
    assert caught.value.filename == "a/b/none"


def test_a_fifo_is_refused_without_waiting_for_its_writer(tree_fd: int) -> None:
    with pytest.raises(ImageError, match="'fifo' is a fifo, expected a regular file"):
        confine.open_regular(tree_fd, "fifo")


@pytest.mark.parametrize("path", ["to-file", "a", "to-dir/secret"])
def test_only_a_regular_file_is_opened_as_one(tree_fd: int, path: str) -> None:
    with pytest.raises(ImageError, match="expected a"):
        confine.open_regular(tree_fd, path)


def test_a_regular_file_is_opened_for_reading(tree_fd: int) -> None:
    with open(confine.open_regular(tree_fd, "a/b/file")) as file:
        assert file.read() == "content"


def test_no_descriptor_is_left_open(tree_fd: int) -> None:
    before = descriptors()
    os.close(confine.open_regular(tree_fd, "a/b/file"))
    for path in ("a/up/x", "a/none/x", "a/../x", "fifo/x"):
        with pytest.raises((ImageError, InvalidArgumentError, OSError)):
            confine.open_beneath(tree_fd, path, os.O_RDONLY)
    next(confine.walk(tree_fd))
    assert descriptors() == before


def status(uid: int, mode: int) -> os.stat_result:
    return os.stat_result((mode, 1, 1, 1, uid, 0, 0, 0, 0, 0))


@pytest.mark.parametrize("mode", [0o100600, 0o100644, 0o40755])
def test_what_only_root_can_change_is_private(mode: int) -> None:
    assert confine.is_private(status(0, mode))


@pytest.mark.parametrize(
    ("uid", "mode"), [(0, 0o100620), (0, 0o100602), (0, 0o41777), (1000, 0o100600)]
)
def test_what_others_can_change_is_not_private(uid: int, mode: int) -> None:
    assert not confine.is_private(status(uid, mode))


def test_a_walk_reports_parents_first_in_order_and_follows_nothing(tree_fd: int) -> None:
    assert [entry.path for entry in confine.walk(tree_fd)] == [
        "a",
        "a/b",
        "a/b/file",
        "a/up",
        "fifo",
        "to-dir",
        "to-file",
    ]


def test_a_walk_has_a_bottom(tmp_path: Path) -> None:
    fd = deep = os.open(tmp_path, os.O_RDONLY)
    for _ in range(confine.MAX_DEPTH + 1):
        os.mkdir("d", dir_fd=deep)
        child = os.open("d", os.O_RDONLY, dir_fd=deep)
        if deep != fd:
            os.close(deep)
        deep = child
    os.close(deep)
    with pytest.raises(ImageError, match=f"deeper than {confine.MAX_DEPTH} levels"):
        list(confine.walk(fd))
    with pytest.raises(ImageError, match=f"deeper than {confine.MAX_DEPTH} levels"):
        confine.clear(fd)
    os.close(fd)


@needs_root
def test_a_private_tree_has_no_untrusted_entry(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "sub").mkdir(0o700)
    (tmp_path / "sub" / "file").write_text("x")
    assert untrusted(tmp_path) is None


@needs_root
def test_an_untrusted_directory_itself_is_a_dot(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert untrusted(tmp_path) == "."


@needs_root
@pytest.mark.parametrize("change", ["chown", "chmod", "symlink", "fifo", "device", "socket"])
def test_an_untrusted_entry_is_named(tmp_path: Path, change: str) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "sub").mkdir(0o700)
    entry = tmp_path / "sub" / "entry"
    if change == "symlink":
        entry.symlink_to("x")
    elif change == "device":
        os.mknod(entry, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    elif change in {"fifo", "socket"}:
        os.mknod(entry, (stat.S_IFIFO if change == "fifo" else stat.S_IFSOCK) | 0o600)
    else:
        entry.write_text("x")
        os.chown(entry, 1000 if change == "chown" else 0, 0)
        entry.chmod(0o666 if change == "chmod" else 0o600)
    assert untrusted(tmp_path) == "sub/entry"


def untrusted(path: Path) -> str | None:
    fd = os.open(path, os.O_RDONLY)
    try:
        return confine.untrusted_entry(fd)
    finally:
        os.close(fd)


@pytest.fixture
def copy_fds(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A source with a file, a nested file and a sparse one; an empty destination."""
    src, dst = tmp_path / "src", tmp_path / "dst"
    (src / "sub").mkdir(parents=True)
    dst.mkdir()
    (src / "one").write_bytes(b"1" * 5000)
    (src / "one").chmod(0o4777)
    (src / "sub" / "two").write_bytes(b"2")
    with (src / "sparse").open("wb") as file:
        file.seek(300_000)
        file.write(b"x")
        file.truncate(600_000)
    fds = os.open(src, os.O_RDONLY), os.open(dst, os.O_RDONLY)
    yield fds
    for fd in fds:
        os.close(fd)


def test_a_copy_holds_the_same_bytes_and_nobody_elses_rights(
    copy_fds: tuple[int, int], tmp_path: Path
) -> None:
    confine.copy_tree(*copy_fds, **LIMITS)
    for name in ("one", "sub/two", "sparse"):
        assert (tmp_path / "dst" / name).read_bytes() == (tmp_path / "src" / name).read_bytes()
        assert stat.S_IMODE((tmp_path / "dst" / name).stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "dst" / "sub").stat().st_mode) == 0o700
    assert (tmp_path / "dst" / "sparse").stat().st_blocks * 512 < 100_000


@pytest.mark.parametrize("limit", [{"max_entries": 3}, {"max_bytes": 605_000}])
def test_a_copy_is_bounded(copy_fds: tuple[int, int], limit: dict[str, int]) -> None:
    with pytest.raises(ImageError, match=r"expected at most|raise the limit"):
        confine.copy_tree(*copy_fds, **LIMITS | limit)


def test_exactly_the_limits_are_allowed(copy_fds: tuple[int, int]) -> None:
    confine.copy_tree(*copy_fds, max_entries=4, max_bytes=605_001)


@pytest.mark.parametrize("name", ["a/up", "to-dir", "to-file", "fifo"])
def test_a_copy_refuses_other_types_by_name(tree: Path, tmp_path: Path, name: str) -> None:
    for other in {"to-dir", "to-file", "fifo", "a"} - {name, os.path.dirname(name)}:
        confine_remove(tree, other)
    (tmp_path / "dst").mkdir()
    src_fd, dst_fd = os.open(tree, os.O_RDONLY), os.open(tmp_path / "dst", os.O_RDONLY)
    with pytest.raises(ImageError, match=f"'{name}' is .*, expected a regular file"):
        confine.copy_tree(src_fd, dst_fd, **LIMITS)
    os.close(src_fd)
    os.close(dst_fd)


def confine_remove(path: Path, name: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        confine.remove_tree(fd, name)
    finally:
        os.close(fd)


def test_removing_a_tree_removes_links_not_what_they_point_to(tree: Path, tmp_path: Path) -> None:
    (tree / "a" / "out").symlink_to(tmp_path / "out")
    for name in ("a", "to-dir", "a"):
        confine_remove(tree, name)
    assert sorted(os.listdir(tree)) == ["fifo", "to-file"]
    assert (tmp_path / "out" / "secret").read_text() == "secret"


def test_clearing_a_directory_keeps_it(tree: Path, tree_fd: int) -> None:
    confine.clear(tree_fd)
    assert os.listdir(tree) == []


def test_a_tree_that_changes_is_walked_without_what_vanishes(tmp_path: Path) -> None:
    (tmp_path / "stays").mkdir()
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            (tmp_path / "one/two").mkdir(parents=True)
            for number in range(20):
                (tmp_path / f"one/two/{number}").touch()
            for number in range(20):
                (tmp_path / f"one/two/{number}").unlink()
            (tmp_path / "one/two").rmdir()
            (tmp_path / "one/two").symlink_to(tmp_path)
            (tmp_path / "one/two").unlink()
            (tmp_path / "one").rmdir()

    dir_fd = os.open(tmp_path, os.O_RDONLY)
    changer = threading.Thread(target=change)
    before = descriptors()
    changer.start()
    lost = walks = 0
    end = time.monotonic() + PATIENCE_S
    try:
        while walks < 2000 or (not lost and time.monotonic() < end):
            walks += 1
            assert "stays" in {entry.path for entry in confine.walk(dir_fd, changing=True)}
            try:
                list(confine.walk(dir_fd))
            except (OSError, ImageError):
                lost += 1
    finally:
        done.set()
        changer.join()
    assert lost  # the thread did come between
    assert descriptors() == before
    os.close(dir_fd)
