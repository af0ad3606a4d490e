import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.errors import InvalidArgumentError
from grit_runtime.model import durations


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1h30m", 5400), ("7d", 604800), ("30m", 1800)]
)
def test_a_text_is_so_many_seconds(text: str, seconds: int) -> None:
    assert durations.seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "5", "m", "1.5h", "-1h", "0s", "1h 2m", "٣s", "9" * 999 + "s"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="expected a time like 90s"):
        durations.seconds(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4s"), (83, "1m23s"), (3600, "1h00m"), (7500, "2h05m"), (93600, "1d02h")],
)
def test_seconds_are_shown_in_two_units(seconds: float, text: str) -> None:
    assert durations.shown(seconds) == text


@given(st.integers(60, 10**8))
def test_what_is_shown_is_read_back_but_for_its_smallest_unit(seconds: int) -> None:
    assert 0 <= seconds - durations.seconds(durations.shown(seconds)) < 3600
