"""Unix sockets whose files have other names than those they were bound to."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest

from grit_runtime.model.task_facts import RenamedSocket
from grit_runtime.tasks import socket_files

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root enters mount namespaces")


def renamed() -> list[tuple[str, tuple[str, ...], bool, bool]]:
    found = socket_files.renamed(os.getpid(), [os.getpid()])
    return [(one.file.bound, one.file.names, one.file.is_kept, one.is_taken) for one in found]


def bind(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    return listener


def put_in_place(bound: Path, *names: Path, is_kept: bool = False) -> list[str]:
    file = RenamedSocket(str(bound), tuple(map(str, names)), is_kept, 0, 0, 0o600)
    return socket_files.put_in_place(os.getpid(), [file])


def test_a_renamed_or_linked_socket_is_found(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    bound, other = tmp_path / "bound", tmp_path / "d/other"
    with bind(bound):
        assert renamed() == []
        bound.rename(other)
        assert renamed() == [(str(bound), (str(other),), False, False)]
        bound.touch()
        assert renamed() == [(str(bound), (str(other),), False, True)]
        other.rename(bound)
        third = tmp_path / "third"
        third.hardlink_to(bound)
        assert renamed() == [(str(bound), (str(third),), True, False)]
        bound.unlink()
        assert renamed() == [(str(bound), (str(third),), False, False)]
        third.unlink()
        assert renamed() == []


def test_a_name_by_way_of_a_link_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "var-run").symlink_to("run")
    with bind(tmp_path / "var-run/socket"):
        assert renamed() == []


def test_a_socket_gets_its_names_again(tmp_path: Path) -> None:
    bound, first, second = (tmp_path / name for name in ("bound", "first", "second"))
    bind(first).close()  # a stale one
    with bind(bound):
        number = bound.stat().st_ino
        assert put_in_place(bound, first, second) == []
        assert (first.stat().st_ino, second.stat().st_ino) == (number, number)
        assert not bound.exists()
        assert put_in_place(first, second, is_kept=True) == []
        assert first.stat().st_ino == number


def test_nothing_but_a_socket_is_replaced_or_moved(tmp_path: Path) -> None:
    bound, name, missing = (tmp_path / name for name in ("bound", "name", "d/missing"))
    name.write_text("kept")
    with bind(bound):
        assert "has lost its name to another file" in put_in_place(bound, name)[0]
        assert "No such file or directory" in put_in_place(bound, missing)[0]
        assert bound.is_socket()
    assert "was not bound to" in put_in_place(name, tmp_path / "new")[0]
    assert name.read_text() == "kept"
