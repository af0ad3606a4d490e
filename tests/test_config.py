from pathlib import Path

import pytest

from grit_runtime import config
from grit_runtime.errors import ConfigurationError, InvalidArgumentError


def test_an_absent_file_means_all_defaults(tmp_path: Path) -> None:
    assert config.load(str(tmp_path / "none.toml")) == config.Config()


def test_a_key_is_taken_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('checkpoint_root = "/srv/checkpoints"\n')
    assert config.load(str(path)).checkpoint_root == "/srv/checkpoints"


@pytest.mark.parametrize(("text", "wait_s"), [("90", 90.0), ("0.5", 0.5)])
def test_a_number_may_have_a_fraction_or_none(tmp_path: Path, text: str, wait_s: float) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f"restore_wait_s = {text}\n")
    assert config.load(str(path)).restore_wait_s == wait_s


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('checkpoint_rot = "/srv"', "unknown key checkpoint_rot, did you mean checkpoint_root"),
        ('colour = "red"', "unknown key colour; known keys: checkpoint_root"),
        ('checkpoint_root = "srv"', "checkpoint_root is 'srv', expected an absolute path"),
        ("checkpoint_root = 7", "checkpoint_root is 7, expected an absolute path"),
        ('huge_pages = "yes"', "huge_pages is 'yes', expected true or false"),
        ("restore_wait_s = 0", "restore_wait_s is 0, expected a positive number"),
        ("restore_wait_s = true", "restore_wait_s is True, expected a positive number"),
        ("restore_wait_s = nan", "restore_wait_s is nan, expected a positive number"),
        ("restore_wait_s = inf", "restore_wait_s is inf, expected a positive number"),
        ('restore_wait_s = "75"', "restore_wait_s is '75', expected a positive number"),
        ("checkpoint_root", "not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(InvalidArgumentError, match=reason):
        config.load(str(path))


def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes("# für alle\n".encode("latin-1"))
    with pytest.raises(ConfigurationError, match=f"{path}: not UTF-8, as TOML has to be: .*; save"):
        config.load(str(path))
