"""A story on a terminal: within its width, and without what controls it."""

from __future__ import annotations

import pytest

from grit_runtime import errors, reasons
from grit_runtime.explain import terminal
from tests.explain.test_page import HOSTILE, story


@pytest.mark.parametrize("columns", [64, 80, 200])
def test_no_line_is_wider_than_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    terminal.show(story("a text of several words and one-that-is-long" * 4))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert any("█" in line for line in lines) == (columns > 72)


def test_texts_of_a_checkpoint_control_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    terminal.show(story(f"{HOSTILE}[bold]markup[/bold]\x9b1m\u202e"))
    shown = capsys.readouterr().out
    assert "".join(c for c in shown if not c.isprintable()).strip("\n") == ""
    assert "[bold]markup" in shown


def test_every_reason_has_its_page_without_markdown() -> None:
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.GritError) and kind.reason:
            found = reasons.find(kind.reason.lower())
            assert found is not None
            assert found.name == kind.reason
            assert not set("`[]|") & set(found.happened + found.remedy)
    page = reasons.find("FileDiffers")
    assert page is not None
    assert "capture the volume (docs/volumes-and-connections.md#volumes)" in page.remedy
    for name in ("NoSuchReason", "---", "reason", ""):
        assert reasons.find(name) is None
