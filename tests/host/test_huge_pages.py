import os
from pathlib import Path

import pytest

from grit_runtime.host import huge_pages


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the place of the kernel's, which shows its choice in brackets as that does."""
    enabled = tmp_path / "enabled"
    enabled.write_text("always [madvise] never\n")
    monkeypatch.setattr(huge_pages, "_ENABLED", str(enabled))
    monkeypatch.setattr(huge_pages, "_KEPT", str(tmp_path / "run/huge-pages"))
    return enabled


def test_the_setting_is_always_during_the_block_and_what_it_was_afterwards(setting: Path) -> None:
    with huge_pages.enabled(wanted=True):
        assert setting.read_text() == "always"
    assert setting.read_text() == "madvise"


def test_nothing_is_touched_unless_wanted(setting: Path) -> None:
    with huge_pages.enabled(wanted=False):
        assert setting.read_text() == "always [madvise] never\n"


def test_a_kernel_without_them_does_without(setting: Path) -> None:
    setting.unlink()
    with huge_pages.enabled(wanted=True):
        assert not setting.exists()


def test_the_last_to_leave_puts_it_back(setting: Path) -> None:
    with huge_pages.enabled(wanted=True):
        with huge_pages.enabled(wanted=True):
            pass
        assert setting.read_text() == "always"
    assert setting.read_text() == "madvise"


def test_what_a_dead_user_left_is_put_back(setting: Path) -> None:
    pid = os.fork()
    if pid == 0:
        held = huge_pages.enabled(wanted=True)
        held.__enter__()
        os._exit(0)
    os.waitpid(pid, 0)
    assert setting.read_text() == "always"
    huge_pages.recover()
    assert setting.read_text() == "madvise"
