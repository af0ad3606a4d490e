"""Waiting for changes of directories, and polling where nobody tells of them."""

from __future__ import annotations

import os
import subprocess
import time

import pytest

from grit_runtime.host import linux
from grit_runtime.host.changes import Changes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

LONG_S = 30.0


def kinds(path: Path) -> tuple[int, ...]:
    """The type of the filesystem at *path*, as stat(1) has it."""
    argv = ["stat", "--file-system", "--format=%t", str(path)]
    return (int(subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout, 16),)


@pytest.mark.parametrize("how", ["made", "renamed to", "renamed from", "written", "exchanged"])
def test_a_change_ends_the_wait(tmp_path: Path, how: str) -> None:
    watched, other = tmp_path / "watched", tmp_path / "other"
    for directory in (watched, other, watched / "one", other / "two"):
        directory.mkdir()
    (watched / "file").write_text("")
    with Changes() as seen:
        seen.watch(str(watched))
        if how == "made":
            (watched / "new").mkdir()
        elif how == "renamed to":
            (other / "two").rename(watched / "two")
        elif how == "renamed from":
            (watched / "one").rename(other / "one")
        elif how == "written":
            (watched / "file").write_text("more")
        else:
            linux.exchange(str(watched / "one"), str(other / "two"))
        begin = time.monotonic()
        assert seen.wait(LONG_S) == []
        assert time.monotonic() - begin < LONG_S / 2


def test_what_was_told_once_is_not_told_again(tmp_path: Path) -> None:
    with Changes() as seen:
        seen.watch(str(tmp_path))
        seen.watch(str(tmp_path))
        for number in range(100):
            (tmp_path / str(number)).touch()
        seen.wait(LONG_S)
        begin = time.monotonic()
        seen.wait(0.3)
        assert time.monotonic() - begin >= 0.29


def test_other_descriptors_end_it_too(tmp_path: Path) -> None:
    read_fd, write_fd = os.pipe()
    with Changes() as seen, open(read_fd, "rb"), open(write_fd, "wb", buffering=0) as end:
        seen.watch(str(tmp_path))
        end.write(b"x")
        assert seen.wait(LONG_S, [-1, read_fd]) == [read_fd]


def test_a_directory_that_is_gone_is_looked_for(tmp_path: Path) -> None:
    with Changes() as seen:
        seen.watch(str(tmp_path / "gone"))
        begin = time.monotonic()
        seen.wait(LONG_S)
        assert time.monotonic() - begin < LONG_S / 2


def test_a_network_filesystem_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linux, "_SHARED_FILESYSTEMS", kinds(tmp_path))
    with Changes() as seen:
        seen.watch(str(tmp_path))
        begin = time.monotonic()
        seen.wait(LONG_S)
        assert time.monotonic() - begin < LONG_S / 2


def test_the_types_of_filesystems_are_the_kernel_s(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not linux.is_shared("/proc")
    monkeypatch.setattr(linux, "_SHARED_FILESYSTEMS", (0x9FA0,))
    assert linux.is_shared("/proc")
