"""What a command says of a target or a file that it can do nothing with."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from grit_runtime.checkpoint import holds
from grit_runtime.cli.main import grit
from grit_runtime.errors import (
    GritError,
    ImageError,
    InvalidArgumentError,
    ManifestError,
    NotFoundError,
)
from grit_runtime.host import journal, records
from grit_runtime.host.containerd import Containerd
from grit_runtime.pod import held_pods

UNNAMED = "no pod or container is named"
CHECKPOINT = Path(__file__).parent.parent / "goldens/format-1"
CONFIG = """{
    "process": {}, "root": {}, "linux": {},
    "annotations": {"io.kubernetes.cri.container-name": "%s"}
}"""


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


@pytest.mark.parametrize("name", ["empty", "notes"])
def test_a_directory_without_a_checkpoint_is_said_to_be_so(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes/text").mkdir(parents=True)
    path = tmp_path / name
    shown = CliRunner().invoke(grit, ["inspect", str(path)])
    assert isinstance(shown.exception, ManifestError)
    assert str(shown.exception).startswith(f"{path} holds no checkpoint: it has neither manifest")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "is no bundle: it has no config.json"),
        ("{", "config.json: not JSON: "),
        ("[]", "config.json: not a JSON object"),
        ("{}", "config.json is no OCI runtime spec of a container: it has no process"),
        (CONFIG % "other", "format-1 holds no container of it, expected one of count"),
    ],
)
def test_what_no_restore_could_go_into_is_named(
    tmp_path: Path, config: str | None, reason: str
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    asked = CliRunner().invoke(grit, ["inspect", str(CHECKPOINT), "--against", str(tmp_path)])
    assert isinstance(asked.exception, GritError)
    assert str(asked.exception).startswith(str(tmp_path))
    assert reason in str(asked.exception)


def test_a_file_is_not_taken_for_the_id_of_a_pod(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(CONFIG % "count")
    asked = CliRunner().invoke(grit, ["inspect", str(CHECKPOINT), "--against", str(path)])
    assert isinstance(asked.exception, NotFoundError)
    assert str(asked.exception).startswith(f"{path} is no bundle: ")


def test_a_pod_that_nothing_is_known_of_is_said_to_be_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((records, "DIR"), (held_pods, "DIR"), (journal, "PODS_DIR")):
        monkeypatch.setattr(module, name, str(tmp_path))
    shown = CliRunner().invoke(grit, ["status", "default/none"])
    assert shown.exit_code == 0
    assert shown.output == "grit: this node has no record of default/none\n"
