"""Watches as /proc shows them, on inotify descriptors of this process."""

from __future__ import annotations

import ctypes
import os

import pytest

from grit_runtime.tasks import watches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_IN_CREATE = 0x100

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def inotify_fd() -> Iterator[int]:
    fd = _libc.inotify_init1(os.O_CLOEXEC)
    yield fd
    os.close(fd)


def test_watched_inodes_of_the_root_are_found(inotify_fd: int) -> None:
    for path in (b"/", b"/etc", b"/proc"):
        assert _libc.inotify_add_watch(inotify_fd, path, _IN_CREATE) > 0
    me = os.getpid()
    found = watches.on_root([me, 1 << 22])
    assert found == {me: {os.stat("/etc").st_ino}}


def test_names_lead_to_inodes_of_one_filesystem_and_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "root/below").mkdir(parents=True)
    (tmp_path / "elsewhere").touch()
    (tmp_path / "root/below/file").touch()
    (tmp_path / "root/link").symlink_to(tmp_path)
    wanted = {
        name: os.stat(tmp_path / name).st_ino
        for name in ("root/below", "root/below/file", "elsewhere")
    }
    assert watches.names(str(tmp_path / "root"), set(wanted.values())) == {
        wanted["root/below"]: "/below",
        wanted["root/below/file"]: "/below/file",
    }
    assert watches.names(str(tmp_path / "root"), set()) == {}


def test_what_a_watch_has_told_and_nobody_has_read_is_counted(
    inotify_fd: int, tmp_path: Path
) -> None:
    assert _libc.inotify_add_watch(inotify_fd, bytes(tmp_path), _IN_CREATE) > 0
    assert watches.unread_bytes(os.getpid()) == 0
    (tmp_path / "file").touch()
    assert watches.unread_bytes(os.getpid()) == 32
    os.read(inotify_fd, 4096)
    assert watches.unread_bytes(os.getpid()) == 0
    assert watches.unread_bytes(1 << 22) == 0
