"""Changes of files, and taking them back."""

from __future__ import annotations

import os

import pytest

from grit_runtime.errors import FailedPreconditionError
from grit_runtime.installation import changes
from grit_runtime.installation.changes import Block, File, Link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from grit_runtime.host.journal import Journal
    from grit_runtime.installation.changes import Change
    from grit_runtime.model.installation_steps import InstallationStep


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal[InstallationStep]:
    for name, below in (("DIR", ""), ("JOURNAL", "/journal"), ("_ORIGINALS", "/originals")):
        monkeypatch.setattr(changes, name, f"{tmp_path}/state{below}")
    return changes.hold()


def take_all_back(held: Journal[InstallationStep]) -> None:
    for step in reversed(changes.standing(held.steps()).values()):
        changes.take_back(step, held)


@pytest.mark.parametrize("text", ["", "a = 1", "a = 1\n", "a = 1\n\n"])
def test_lines_leave_a_file_to_the_byte(
    text: str, tmp_path: Path, held: Journal[InstallationStep]
) -> None:
    path = tmp_path / "shared.toml"
    path.write_text(text)
    path.chmod(0o640)
    was = path.stat()
    changes.make({str(path): Block("b = 2\n")}, held)
    assert path.read_text().startswith(f"{text}\n#")
    assert path.stat().st_mode == was.st_mode
    changes.make({str(path): Block("b = 3\n")}, held)
    assert "b = 2" not in path.read_text()
    take_all_back(held)
    assert path.read_text() == text
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
    take_all_back(held)
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
        take_all_back(held)
    assert path.read_text() == cut


def test_a_disk_that_is_full_leaves_the_old_file(
    tmp_path: Path, held: Journal[InstallationStep]
) -> None:
    path = tmp_path / "shared.toml"
    path.write_text("a = 1\n")
    limit = pytest.importorskip("resource")
    soft, hard = limit.getrlimit(limit.RLIMIT_FSIZE)
    limit.setrlimit(limit.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            changes.make({str(path): Block("b = 2\n" * 4096)}, held)
    finally:
        limit.setrlimit(limit.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "a = 1\n"
    assert not list(tmp_path.glob("*.grit-new"))
