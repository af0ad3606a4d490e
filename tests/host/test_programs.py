"""Where runc and criu are looked for, and what is said where they are not."""

from pathlib import Path

import pytest

from grit_runtime.errors import InvalidArgumentError, NotFoundError
from grit_runtime.host import criu, process, programs


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of two directories with a criu, the one on PATH."""
    for name in ("on-path", "elsewhere"):
        (tmp_path / name).mkdir()
        program = tmp_path / name / "criu"
        program.write_text(f"#!/bin/sh\necho {name}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{tmp_path}/on-path")
    return tmp_path


def test_a_program_is_the_configured_one_or_the_first_on_path(directory: Path) -> None:
    assert programs.find("criu", "") == f"{directory}/on-path/criu"
    assert programs.find("criu", f"{directory}/elsewhere/criu") == f"{directory}/elsewhere/criu"


def test_who_looks_for_criu_on_path_finds_the_configured_one(directory: Path) -> None:
    criu.prefer("")
    assert process.run(["criu"], token="0") == b"on-path\n"
    criu.prefer(f"{directory}/elsewhere/criu")
    assert process.run(["criu"], token="0") == b"elsewhere\n"


def test_what_is_not_there_is_named_with_the_remedy(directory: Path) -> None:
    with pytest.raises(NotFoundError, match=r"ronc not found in .*on-path:/usr/.*; install it or"):
        programs.find("ronc", "")
    (directory / "criu").write_text("not a program")
    with pytest.raises(
        NotFoundError, match=r"criu not found at .*; install it or set criu in /etc/grit/config"
    ):
        criu.prefer(f"{directory}/criu")


def test_a_criu_that_runc_would_not_find_is_refused(directory: Path) -> None:
    other = directory / "elsewhere/criu"
    other = other.rename(other.with_name("criu-4.2"))
    with pytest.raises(InvalidArgumentError, match=r"criu-4\.2: runc runs what is named criu"):
        criu.prefer(str(other))
