"""What a command says of a target or a file that it can do nothing with."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from grit_runtime.checkpoint import holds
from grit_runtime.cli.main import grit
from grit_runtime.errors import ImageError, InvalidArgumentError
from grit_runtime.host import journal, records
from grit_runtime.host.containerd import Containerd
from grit_runtime.pod import held_pods

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

UNNAMED = "no pod or container is named"


def test_an_empty_name_is_not_the_beginning_of_every_id() -> None:
    asked = pytest.raises(InvalidArgumentError, match=UNNAMED)
    with Containerd("/nonexistent") as containerd, asked:
        containerd.find("")
    with pytest.raises(InvalidArgumentError, match=UNNAMED):
        holds.resume("")


def test_a_file_that_is_no_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("text\n" * 1000)
    found = CliRunner().invoke(grit, ["inspect", str(path)])
    assert isinstance(found.exception, ImageError)
    assert str(found.exception).startswith(f"{path}: tar: ")


def test_a_pod_that_nothing_is_known_of_is_said_to_be_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((records, "DIR"), (held_pods, "DIR"), (journal, "PODS_DIR")):
        monkeypatch.setattr(module, name, str(tmp_path))
    shown = CliRunner().invoke(grit, ["status", "default/none"])
    assert shown.exit_code == 0
    assert shown.output == "grit: this node has no record of default/none\n"
