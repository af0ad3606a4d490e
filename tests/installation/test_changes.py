"""Changes of files, and taking them back."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from contextlib import contextmanager

import pytest

from grit_runtime.errors import FailedPreconditionError
from grit_runtime.installation import changes
from grit_runtime.installation.changes import Block, File, Link
from integration.node import killed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import NoReturn

    from grit_runtime.host.journal import Journal
    from grit_runtime.installation.changes import Change
    from grit_runtime.model.installation_steps import InstallationStep


def kept_in(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation is recorded below this directory."""
    for name, below in (("DIR", ""), ("JOURNAL", "/journal"), ("_ORIGINALS", "/originals")):
        monkeypatch.setattr(changes, name, f"{directory}/state{below}")


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal[InstallationStep]:
    kept_in(tmp_path, monkeypatch)
    return changes.hold()


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A directory with a file, on a disk that takes nothing."""
    directory = tmp_path / "read-only"
    directory.mkdir()
    (directory / "config.toml").write_text("a = 1\n")
    subprocess.run(["mount", "--bind", directory, directory], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)
    yield directory
    subprocess.run(["umount", directory], check=True)


@contextmanager
def limited(size_bytes: int) -> Iterator[None]:
    """No file can become larger."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def make_until(step: int, wanted: dict[str, Change]) -> NoReturn:
    """Make the changes, killed before that one."""
    try:
        os.umask(0o022)
        killed.kill_at(step)
        changes.make(wanted, changes.hold())
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.parametrize("text", ["", "a = 1", "a = 1\n", "a = 1\n\n", "a = 1\r\n# \xfc\r\n"])
def test_lines_leave_a_file_to_the_byte(
    text: str, tmp_path: Path, held: Journal[InstallationStep]
) -> None:
    path = tmp_path / "shared.toml"
    path.write_bytes(text.encode("latin-1"))
    path.chmod(0o640)
    was = path.stat()
    changes.make({str(path): Block("b = 2\n")}, held)
    assert path.read_bytes().startswith(f"{text}\n#".encode("latin-1"))
    assert path.stat().st_mode == was.st_mode
    changes.make({str(path): Block("b = 3\n")}, held)
    assert b"b = 2" not in path.read_bytes()
    changes.take_all_back(held)
    assert path.read_bytes() == text.encode("latin-1")
    assert path.stat().st_mtime_ns == was.st_mtime_ns


def test_a_file_that_was_there_comes_back_whatever_it_was(
    tmp_path: Path, held: Journal[InstallationStep]
) -> None:
    file, link, new = tmp_path / "file", tmp_path / "link", tmp_path / "a/b/new"
    file.write_text("theirs")
    link.symlink_to("file")
    wanted: dict[str, Change] = {
        str(file): File(b"ours"),
        str(link): File(b"ours", mode=0o755),
        str(new): Link("../elsewhere"),
    }
    changes.make(wanted, held)
    assert file.read_text() == link.read_text() == "ours"
    assert not link.is_symlink()
    assert changes.make(wanted, held) == []
    changes.take_all_back(held)
    assert file.read_text() == "theirs"
    assert os.readlink(link) == "file"
    assert not (tmp_path / "a").exists()


def test_half_of_the_marks_is_not_guessed_at(
    tmp_path: Path, held: Journal[InstallationStep]
) -> None:
    path = tmp_path / "shared.toml"
    path.write_text("a = 1\n")
    changes.make({str(path): Block("b = 2\n")}, held)
    cut = path.read_text().partition("# end")[0]
    path.write_text(cut)
    with pytest.raises(FailedPreconditionError, match="has only one of the lines"):
        changes.take_all_back(held)
    assert path.read_text() == cut


@pytest.mark.parametrize(
    ("text", "left"),
    [("a = 1\n{}b = 2\n", "a = 1\nb = 2\n"), ("{}b = 2\n", "b = 2\n"), ("{}", "")],
    ids=["no line between", "nothing before", "nothing else"],
)
def test_lines_that_others_have_moved_are_taken_from_theirs(
    text: str, left: str, tmp_path: Path, held: Journal[InstallationStep]
) -> None:
    path = tmp_path / "shared.toml"
    path.write_text("a = 1\n")
    changes.make({str(path): Block("c = 3\n")}, held)
    lines = path.read_text().removeprefix("a = 1\n\n")
    path.write_text(text.format(lines))
    changes.take_all_back(held)
    assert path.read_text() == left


def test_what_was_taken_back_and_not_recorded_so_can_be_changed_again(
    tmp_path: Path, held: Journal[InstallationStep]
) -> None:
    """What was there comes back then, too."""
    path = tmp_path / "file"
    path.write_text("theirs")
    wanted: dict[str, Change] = {str(path): File(b"ours")}
    changes.make(wanted, held)
    with limited(os.path.getsize(held.path)), pytest.raises(OSError, match="File too large"):
        changes.take_back(changes.standing(held.steps())[str(path)], held)
    assert path.read_text() == "theirs"
    changes.make(wanted, held)
    changes.take_all_back(held)
    assert path.read_text() == "theirs"


def test_nobody_else_can_read_what_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However early it is looked at: a child is killed before each of its changes."""
    step, status = 0, -signal.SIGKILL
    while status != 0:
        step += 1
        shared, own = tmp_path / f"{step}/shared", tmp_path / f"{step}/own"
        shared.parent.mkdir()
        kept_in(tmp_path / f"{step}", monkeypatch)
        for path in (shared, own):
            path.write_text("password = 1\n")
            path.chmod(0o600)
        wanted: dict[str, Change] = {str(shared): Block("b = 2\n"), str(own): File(b"", mode=0o600)}
        pid = os.fork()
        if pid == 0:
            make_until(step, wanted)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in {0, -signal.SIGKILL}
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert [path for path in files if path.stat().st_mode & 0o077] == []
    assert step > 8


def test_a_disk_that_is_full_leaves_the_old_file(
    tmp_path: Path, held: Journal[InstallationStep]
) -> None:
    path = tmp_path / "shared.toml"
    path.write_text("a = 1\n")
    with limited(8192), pytest.raises(OSError, match="File too large"):
        changes.make({str(path): Block("b = 2\n" * 4096)}, held)
    assert path.read_text() == "a = 1\n"
    assert not list(tmp_path.glob("*.grit-new"))


@pytest.mark.parametrize("change", [Block("b = 2\n"), File(b"ours"), Link("there")], ids=str)
def test_what_cannot_be_changed_is_as_before_and_the_rest_taken_back(
    change: Change, tmp_path: Path, read_only: Path, held: Journal[InstallationStep]
) -> None:
    other, there = tmp_path / "other", read_only / "config.toml"
    wanted = {str(other): File(b"ours"), str(there): change, str(read_only / "new"): change}
    with pytest.raises(OSError, match="Read-only file system"):
        changes.make(wanted, held)
    changes.take_all_back(held)
    assert not other.exists()
    assert os.listdir(read_only) == ["config.toml"]
    assert there.read_text() == "a = 1\n"
    assert not os.path.exists(held.path)


def test_a_file_that_is_a_mount_is_left_and_so_is_nothing_beside_it(
    tmp_path: Path, held: Journal[InstallationStep]
) -> None:
    path = tmp_path / "config.toml"
    path.write_text("a = 1\n")
    subprocess.run(["mount", "--bind", path, path], check=True)
    try:
        with pytest.raises(OSError, match="busy"):
            changes.make({str(path): Block("b = 2\n")}, held)
        changes.take_all_back(held)
        assert sorted(os.listdir(tmp_path)) == ["config.toml"]
        assert path.read_text() == "a = 1\n"
    finally:
        subprocess.run(["umount", path], check=True)


def test_what_cannot_be_taken_back_stays_recorded(
    tmp_path: Path, held: Journal[InstallationStep]
) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    changes.make({first: File(b"ours"), second: File(b"ours")}, held)
    subprocess.run(["mount", "--bind", second, second], check=True)
    try:
        changes.take_all_back(held)
        assert list(changes.standing(held.steps())) == [second]
        assert not os.path.exists(first)
    finally:
        subprocess.run(["umount", second], check=True)
    changes.take_all_back(held)
    assert not os.path.exists(second)
