"""Lines of the log: logfmt or JSON, and whose they are."""

from __future__ import annotations

import json
import shlex
import time
from typing import TYPE_CHECKING

import pytest

from grit_runtime import config, log
from grit_runtime.model import outcomes
from tests.outcomes import NOW

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def one_test_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process sets for itself goes with the test."""
    monkeypatch.setattr(log, "_is_json", False)


def printed(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return capfd.readouterr().err.splitlines()


def test_a_line_of_logfmt_quotes_what_has_to_be(capfd: pytest.CaptureFixture[str]) -> None:
    log.warning("it broke", reason='no "x"=1\nat all', seconds=0.25, id="a1", none="")
    (line,) = printed(capfd)
    assert r'reason="no \"x\"=1\nat all" seconds=0.250 id=a1 none=""' in line
    assert shlex.split(line)[1:3] == ["level=warning", "msg=it broke"]


def test_a_line_of_json_has_the_same_fields(capfd: pytest.CaptureFixture[str]) -> None:
    log.as_json()
    log.error("it broke", reason=OSError("no \ud800"), seconds=0.25, keys=["a"], size_bytes=7)
    (line,) = printed(capfd)
    found = json.loads(line)
    assert list(found)[:3] == ["time", "level", "msg"]
    assert found["reason"] == "no \ud800"
    assert (found["seconds"], found["keys"], found["size_bytes"]) == (0.25, ["a"], 7)


def test_lines_of_a_block_say_whose_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    with log.about(**outcomes.whose(NOW)):
        log.info("verify", seconds=1.0)
        with log.about(container="other"):
            log.info("undone")
        log.Timeline().add("dump", container="sidecar", seconds=0.0)
    log.info("afterwards")
    verify, undone, dump, afterwards = (line.partition("msg=")[2] for line in printed(capfd))
    assert verify == "verify pod=default/counter container=main attempt=id seconds=1.000"
    assert undone == "undone pod=default/counter container=other attempt=id"
    assert dump == "dump pod=default/counter container=sidecar attempt=id seconds=0.000"
    assert afterwards == "afterwards"


def test_the_block_s_fields_go_when_it_fails(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match="no"), log.about(pod="default/counter"):
        raise OSError("no")
    log.info("afterwards")
    assert "pod=" not in printed(capfd)[0]


def test_the_configuration_says_how_a_process_logs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.toml"
    path.write_text("log_json = false\n")
    config.load(str(path))
    log.info("one")
    path.write_text("log_json = true\n")
    config.load(str(path))
    log.info("two")
    one, two = printed(capfd)
    assert one.endswith("level=info msg=one")
    assert json.loads(two)["msg"] == "two"


def test_a_phase_says_when_it_began() -> None:
    timeline = log.Timeline()
    timeline.add("dump", seconds=0.0)
    (phase,) = timeline.phases
    assert phase["epoch_s"] == pytest.approx(time.time(), abs=5)
