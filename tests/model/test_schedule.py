from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.model import schedule
from grit_runtime.model.schedule import Taken


def in_ten_minutes(moment: float) -> float:
    return moment + 600


def test_the_first_is_due_an_interval_after_the_beginning() -> None:
    assert schedule.next_time(in_ten_minutes, since=1000, last=None, now=1001) == 1600


def test_the_next_is_due_an_interval_after_the_last() -> None:
    assert schedule.next_time(in_ten_minutes, since=0, last=1000, now=1001) == 1600


def test_those_that_were_missed_are_made_up_for_by_one_at_once() -> None:
    assert schedule.next_time(in_ten_minutes, since=0, last=1000, now=9000) == 9000


def test_a_clock_that_was_set_back_does_not_stop_a_schedule() -> None:
    assert schedule.next_time(in_ten_minutes, since=0, last=10**9, now=1000) == 1600


@given(st.floats(1, 1e6), st.floats(0, 1e9), st.none() | st.floats(0, 1e9), st.floats(0, 1e9))
def test_the_next_is_never_past_nor_more_than_an_interval_away(
    interval_s: float, since: float, last: float | None, now: float
) -> None:
    due = schedule.next_time(lambda moment: moment + interval_s, since, last, now)
    assert now <= due <= now + interval_s


def test_the_newest_stay_and_the_oldest_go_first() -> None:
    taken = [Taken(f"c{time}", time, "sealed", keep=2) for time in (3, 1, 4, 2)]
    assert schedule.surplus(taken) == ["c1", "c2"]


def test_failures_push_out_no_state() -> None:
    bad = [Taken(f"bad{n}", n, "failed", keep=2) for n in (2, 3, 4)]
    assert schedule.surplus([Taken("good", 1, "sealed", keep=2), *bad]) == ["bad2"]


def test_what_is_under_way_or_needed_or_says_nothing_stays() -> None:
    taken = [
        Taken("needed", 1, "sealed", is_in_use=True, keep=1),
        Taken("old", 2, "sealed", keep=1),
        Taken("by hand", 3, "sealed"),
        Taken("new", 4, "sealed", keep=1),
        Taken("now", 5, "under way", keep=1),
    ]
    assert schedule.surplus(taken) == ["old"]


def test_each_stays_for_as_long_as_itself_says() -> None:
    taken = [Taken(f"c{time}", time, "sealed", keep=5 - time) for time in (1, 2, 3, 4)]
    assert schedule.surplus(taken) == []
    assert schedule.surplus([*taken, Taken("c5", 5, "sealed", keep=1)]) == ["c1", "c2", "c3", "c4"]


TAKEN = st.lists(
    st.builds(
        Taken,
        name=st.text(),
        time=st.integers(0, 99),
        state=st.sampled_from(["under way", "sealed", "failed"]),
        is_in_use=st.booleans(),
        keep=st.integers(1, 5),
    ),
    unique_by=lambda one: one.name,
)


@given(TAKEN)
def test_the_newest_sealed_one_always_stays(taken: list[Taken]) -> None:
    gone = set(schedule.surplus(taken))
    sealed = [one for one in taken if one.state == "sealed"]
    newest = max(sealed, key=lambda one: one.time, default=None)
    assert newest is None or newest.time >= max(
        (one.time for one in sealed if one.name in gone), default=0
    )
    assert not sealed or [one for one in sealed if one.name not in gone]
