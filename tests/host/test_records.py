"""Records: kept in order, bounded, and of pods that are gone only the newest."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from grit_runtime import paths
from grit_runtime.host import records
from grit_runtime.model import outcomes
from tests.outcomes import NOW

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    logs = tmp_path / "pods"
    logs.mkdir()
    monkeypatch.setattr(records, "DIR", os.fspath(tmp_path / "records"))
    monkeypatch.setattr(paths, "POD_LOGS_DIR", os.fspath(logs))
    monkeypatch.setattr(records, "_GONE_PODS_KEPT", 2)
    return tmp_path / "records"


@pytest.mark.usefixtures("directory")
def test_what_is_kept_is_read_back_in_order() -> None:
    failed = NOW._replace(outcome=outcomes.FAILED, reason="why\n")
    records.append(failed)
    records.append(NOW)
    records.append(NOW._replace(pod_uid="other", pod="other", time="2026-01-01T00:00:00Z"))
    assert [one.outcome for one in records.of_pod("uid")] == ["failed", "restored"]
    assert records.of_pod("uid")[0].reason == "why\n"
    assert [one.pod for one in records.matching(None)] == ["other", "counter", "counter"]
    assert [one.pod for one in records.matching("default/other")] == ["other"]
    assert len(records.matching("uid")) == 2


@pytest.mark.usefixtures("directory")
def test_only_files_that_mention_a_word_are_understood(
    directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    records.append(NOW)
    records.append(NOW._replace(pod_uid="other", pod="öther", time="2026-01-01T00:00:00Z"))
    (directory / "newer.json").write_text('[{"colour": "red"}]')
    (directory / "cut.json").write_text('[{"ti')
    assert [one.pod for one in records.mentioning("öther", "nobody")] == ["öther"]
    assert "newer.json" not in (said := capfd.readouterr().err)
    assert "cut.json" in said
    assert [one.pod for one in records.mentioning("red", "ö", "uid")] == ["öther", "counter"]


def test_of_a_pod_nobody_knows_there_are_none() -> None:
    assert records.of_pod("uid") == ()
    assert records.matching(None) == []


def test_a_pods_records_are_bounded(directory: Path) -> None:
    records.append(NOW)
    for _ in range(outcomes.RECORDS_KEPT + 5):
        records.append(NOW._replace(outcome=outcomes.FAILED))
    kept = records.of_pod("uid")
    assert len(kept) == outcomes.RECORDS_KEPT + 1
    assert kept[0] == NOW._replace(timeline=kept[0].timeline)
    assert os.listdir(directory) == ["uid.json"]


def test_of_pods_that_are_gone_the_newest_are_kept(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "pods" / "default_counter_alive").mkdir()
    for age, uid in enumerate(("alive", "oldest", "older", "old")):
        records.append(NOW._replace(pod_uid=uid))
        os.utime(directory / f"{uid}.json", (age, age))
    records.append(NOW._replace(pod_uid="new"))
    assert sorted(os.listdir(directory)) == ["alive.json", "new.json", "old.json", "older.json"]
