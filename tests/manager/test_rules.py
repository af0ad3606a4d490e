from __future__ import annotations

from typing import Any

import pytest

from grit_runtime.manager import api, rules
from grit_runtime.model.selectors import LabelSelector

POD = api.CheckpointSpec(pod_name="trainer-0")
WEB = LabelSelector({"app": "web"})
CLAIM = api.Storage("store")
DAILY = api.CheckpointScheduleSpec(pod_name="trainer-0", interval="24h")


@pytest.mark.parametrize(
    "spec",
    [
        POD,
        POD._replace(pod_name="", selector=WEB),
        POD._replace(storage=CLAIM),
        POD._replace(volume_claim=api.VolumeClaim("store")),
        api.RestoreSpec("nightly", selector=LabelSelector()),
        api.MigrationSpec("trainer-0", storage=api.Storage(url="s3://bucket/a")),
        POD._replace(storage=api.Storage(url="file:///srv/checkpoints")),
        DAILY,
        DAILY._replace(interval="", triggers=("NodeDrain",)),
    ],
)
def test_a_spec_that_means_something_is_taken(spec: Any) -> None:
    assert rules.refusals(spec) == []


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (POD._replace(pod_name=""), "expected podName or selector"),
        (POD._replace(selector=WEB), "expected podName or selector, and not both"),
        (
            POD._replace(volume_claim=api.VolumeClaim("a"), storage=CLAIM),
            "expected volumeClaim or storage, and not both",
        ),
        (POD._replace(storage=api.Storage()), "storage: expected claimName or url"),
        (POD._replace(storage=CLAIM._replace(url="s3://b/c")), "storage: expected claimName or"),
        *(
            (POD._replace(storage=api.Storage(url=url)), "storage.url: expected file:///DIRECTORY")
            for url in (
                "peer://node-b",
                "volume://uid/data",
                "file://s3://b",
                "https://a/b",
                "s3://",
            )
        ),
        (api.RestoreSpec("nightly"), "expected ownerRef or selector"),
        (api.MigrationSpec(), "expected podName or selector"),
        (DAILY._replace(interval=""), "expected interval, cron or triggers"),
        (DAILY._replace(cron="0 3 * * *"), "expected interval or cron, and not both"),
        (DAILY._replace(interval="", cron="0 0 3 * * *"), "cron: expected five fields"),
    ],
)
def test_a_spec_that_means_nothing_is_refused_with_what_it_lacks(spec: Any, words: str) -> None:
    (reason,) = rules.refusals(spec)
    assert words in reason


def test_only_a_schedule_can_be_changed() -> None:
    assert rules.refusals(POD._replace(after="frozen"), POD) == [rules.IMMUTABLE]
    assert rules.refusals(DAILY._replace(keep=9), DAILY) == []


def test_a_schedule_names_no_other_store_than_it_was_made_with() -> None:
    stored = DAILY._replace(storage=api.Storage(url="s3://bucket/a"))
    for old in (DAILY, stored._replace(storage=api.Storage(url="s3://bucket/b"))):
        assert rules.refusals(stored, old) == [rules.SAME_STORE]
    assert rules.refusals(stored._replace(keep=9), stored) == []
    assert rules.refusals(DAILY._replace(storage=CLAIM), stored) == []


def test_an_object_that_is_older_than_a_rule_can_be_finished() -> None:
    older = api.RestoreSpec("nightly")
    assert rules.refusals(older, older) == []
