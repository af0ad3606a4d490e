from datetime import UTC, datetime

import pytest

from grit_runtime.errors import InvalidArgumentError
from grit_runtime.manager import api, timetable

DAILY = api.CheckpointScheduleSpec(pod_name="trainer-0", cron="0 3 * * *")


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def test_cron_is_in_utc_and_strictly_later() -> None:
    after = timetable.after(DAILY)
    assert after
    assert after(at("2026-03-29T02:59:59")) == at("2026-03-29T03:00:00")
    assert after(at("2026-03-29T03:00:00")) == at("2026-03-30T03:00:00")


def test_an_interval_is_from_one_to_the_next() -> None:
    after = timetable.after(DAILY._replace(cron="", interval="1h30m"))
    assert after
    assert after(1000.0) == 1000.0 + 5400


def test_a_schedule_of_triggers_alone_has_no_clock() -> None:
    assert timetable.after(DAILY._replace(cron="", triggers=("Annotation",))) is None


@pytest.mark.parametrize(
    "text", ["* * * * * *", "@daily", "0 3 * *", "61 * * * *", "0 0 30 2 *", "a b c d e", " "]
)
def test_what_is_not_five_fields_of_some_time_is_refused(text: str) -> None:
    assert not timetable.is_cron(text)
    with pytest.raises(InvalidArgumentError, match="five fields"):
        timetable.after(DAILY._replace(cron=text))


@pytest.mark.parametrize("text", ["* * * * *", "*/5 0-6 1,15 * mon-fri", " 0  3 * * * "])
def test_five_fields_are_taken(text: str) -> None:
    assert timetable.is_cron(text)
