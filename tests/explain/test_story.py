"""A story of what records and logs have, whatever state these are in."""

from __future__ import annotations

import calendar
import os
import tarfile
import time
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from grit_runtime import bug_report, config, paths
from grit_runtime.checkpoint import inspection
from grit_runtime.cli.main import grit
from grit_runtime.doctor import examination
from grit_runtime.errors import ManifestError
from grit_runtime.explain import story
from grit_runtime.host import records
from grit_runtime.model import outcomes
from tests.outcomes import NOW

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CONFIG = config.Config()
FAILED = NOW._replace(outcome=outcomes.FAILED, reason="why", error="RestoreFailed")
NEWER = '[{"time": "2027-01-01T00:00:00Z", "pod": "counter", "colour": "password=hunter2"}]'


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node with a record, and with two that this grit cannot read."""
    monkeypatch.setattr(records, "DIR", str(tmp_path / "records"))
    monkeypatch.setattr(paths, "LOG_DIR", str(tmp_path / "log"))
    monkeypatch.setenv("COLUMNS", "120")
    records.append(FAILED)
    (tmp_path / "records/newer.json").write_text(NEWER)
    (tmp_path / "records/cut.json").write_text('[{"time": "2027-01-')
    (tmp_path / "records/empty.json").touch()
    return tmp_path


def test_records_that_cannot_be_read_are_passed_over_by_name(
    node: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told = story.tell("default/counter", CONFIG)
    assert [act.reason for act in told.acts] == ["why"]
    warnings = capfd.readouterr().err
    for name in ("newer", "cut", "empty"):
        assert f"{node}/records/{name}.json: " in warnings


@pytest.mark.parametrize("arguments", [["status"], ["explain", "RestoreFailed"]])
@pytest.mark.usefixtures("node")
def test_a_record_that_cannot_be_read_stops_no_command(arguments: list[str]) -> None:
    done = CliRunner().invoke(grit, arguments)
    assert done.exit_code == 0, done.exception
    assert "default/counter/main restore failed: why (RestoreFailed)" in done.output


@pytest.fixture
def reported(node: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, str]]:
    """The files of a report of that node."""
    monkeypatch.setattr(examination, "CHECKS", ())  # they would look at this machine
    monkeypatch.setattr(config, "PATH", str(node / "config.toml"))

    def files() -> dict[str, str]:
        bug_report.write(str(node / "report.tar.gz"))
        with tarfile.open(node / "report.tar.gz") as archive:
            archive.extractall(node / "report")  # noqa: S202  our own
        (report,) = (node / "report").iterdir()
        return {str(path.relative_to(report)): path.read_text() for path in report.rglob("*.*")}

    return files


def test_a_report_has_the_records_that_cannot_be_read(
    node: Path, reported: Callable[[], dict[str, str]]
) -> None:
    (node / "elsewhere.toml").write_text("log_json = true\n")
    (node / "config.toml").symlink_to("elsewhere.toml")
    found = reported()
    assert found["records/newer.json"] == NEWER.replace("hunter2", "[removed]")
    assert found["records/empty.json"] == ""
    assert '"reason": "why"' in found["records.json"]
    assert found["config.toml"] == "log_json = true\n"


def test_a_log_that_goes_meanwhile_is_missing_in_a_report(
    node: Path, reported: Callable[[], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (node / "log").mkdir()
    (node / "log/kept.log").write_text("kept\n")
    monkeypatch.setattr(os, "walk", lambda top: [(top, [], ["gone.log", "kept.log"])])
    assert reported()["log/kept.log"] == "kept\n"


def test_the_end_of_a_log_does_not_begin_within_a_secret(
    node: Path, reported: Callable[[], dict[str, str]]
) -> None:
    (node / "log").mkdir()
    for name, size in (("cut", 300 << 10), ("whole", 100 << 10)):
        text = f"password={'hunter2' * (size // 7)}\nkept\n"
        (node / f"log/{name}.log").write_text(text)
    files = reported()
    assert files["log/cut.log"] == "kept\n"
    assert files["log/whole.log"] == "password=[removed]\nkept\n"


def test_half_a_line_of_runcs_log_is_passed_over(node: Path) -> None:
    log = node / "log/default/counter/main/runc.log"
    log.parent.mkdir(parents=True)
    log.write_text('{"level": "error", "msg": "it failed"}\n{"level": "error", "msg": "no')
    end_s = calendar.timegm(time.strptime(FAILED.time, "%Y-%m-%dT%H:%M:%SZ"))
    os.utime(log, (end_s, end_s))
    (act,) = story.tell("default/counter", CONFIG).acts
    assert act.evidence == ("runc.log: it failed",)


def test_a_chain_of_processes_may_be_as_long_as_a_pod_likes() -> None:
    chain = [task(pid, pid - 1) for pid in range(1, 3001)]
    assert [depth for depth, _ in inspection.descending(chain)] == list(range(3000))


def test_processes_stand_below_their_parents_once_in_their_order() -> None:
    tasks = [task(2, 1), task(1, 0), task(4, 0), task(3, 1), task(5, 2), task(1, 5), task(7, 7)]
    found = [(depth, one["pid"]) for depth, one in inspection.descending(tasks)]
    assert found == [(0, 1), (1, 2), (2, 5), (3, 1), (1, 3), (0, 4)]


def task(pid: int, parent: int) -> dict[str, Any]:
    return {"pid": pid, "ppid": parent, "comm": "sh", "uid": 0, "threads": 1}


def test_a_reason_has_no_page_as_html(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    done = CliRunner().invoke(grit, ["explain", "NotFound", "--html", str(path)])
    assert done.exit_code == 2
    assert "NotFound is a reason, which has no page as HTML" in done.output
    assert not path.exists()


def test_the_root_directory_is_said_to_be_no_checkpoint() -> None:
    with pytest.raises(ManifestError, match=r"^/ holds no checkpoint: "):
        story.tell("/", CONFIG)
