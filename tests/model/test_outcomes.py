"""What a pod's past allows its next containers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.errors import FailedPreconditionError
from grit_runtime.model import outcomes
from grit_runtime.model.outcomes import COLD, FAILED, RESTORED, Outcome
from tests.outcomes import NOW

SIDE = NOW._replace(container="side")

OUTCOMES = st.builds(
    NOW._replace,
    outcome=st.sampled_from([RESTORED, COLD, FAILED]),
    container=st.sampled_from(["main", "side"]),
    sandbox_id=st.sampled_from(["sandbox", "gone"]),
    checkpoint=st.sampled_from(["/c/nightly", "/c/weekly"]),
    manifest_sha256=st.sampled_from(["1" * 64, "2" * 64, ""]),
).map(lambda one: one._replace(binds=one.outcome == COLD and one.checkpoint == "/c/nightly"))
PASTS = st.lists(OUTCOMES, max_size=8).map(tuple)


def test_a_container_is_restored_once_from_a_checkpoint() -> None:
    assert outcomes.cold_reason((), NOW) is None
    assert "it was restored" in str(outcomes.cold_reason((NOW,), NOW))


def test_another_checkpoint_of_the_same_name_is_another_checkpoint() -> None:
    assert outcomes.cold_reason((NOW,), NOW._replace(manifest_sha256="2" * 64)) is None


def test_a_copy_elsewhere_is_the_same_checkpoint() -> None:
    assert outcomes.cold_reason((NOW,), NOW._replace(checkpoint="/c/copy")) is not None


def test_a_checkpoint_that_was_removed_is_known_by_its_directory() -> None:
    gone = NOW._replace(manifest_sha256="")
    assert outcomes.cold_reason((NOW,), gone) is not None
    assert outcomes.cold_reason((NOW,), gone._replace(checkpoint="/c/weekly")) is None


def test_a_failed_attempt_decides_nothing() -> None:
    assert outcomes.cold_reason((NOW._replace(outcome=FAILED),), NOW) is None


def test_a_container_restored_in_the_same_sandbox_leaves_the_others_to_be_restored() -> None:
    assert outcomes.cold_reason((SIDE,), NOW) is None
    assert outcomes.restored_container((SIDE,), "sandbox") == "side"


def test_in_a_new_sandbox_the_whole_pod_is_cold() -> None:
    reason = outcomes.cold_reason((SIDE,), NOW._replace(sandbox_id="new"))
    assert "container side of the pod was restored" in str(reason)
    assert outcomes.restored_container((SIDE,), "new") is None


def test_one_cold_start_for_a_failure_binds_the_pod() -> None:
    cold = SIDE._replace(outcome=COLD, manifest_sha256="", reason="no checkpoint")
    assert outcomes.cold_reason((cold,), NOW) is None
    assert "started cold" in str(outcomes.cold_reason((cold._replace(binds=True),), NOW))


@given(PASTS)
def test_whatever_has_happened_a_restore_is_the_last_of_its_checkpoint(
    past: tuple[Outcome, ...],
) -> None:
    assert outcomes.cold_reason((*past, NOW), NOW) is not None


@given(PASTS, st.integers(min_value=0, max_value=3 * outcomes.RECORDS_KEPT))
def test_what_is_dropped_decides_nothing(past: tuple[Outcome, ...], failures: int) -> None:
    long = (*past, *[NOW._replace(outcome=FAILED)] * failures)
    kept = outcomes.bounded(long)
    assert len(kept) <= outcomes.RECORDS_KEPT + len(past)
    assert outcomes.cold_reason(kept, NOW) == outcomes.cold_reason(long, NOW)
    for sandbox_id in ("sandbox", "gone"):
        assert outcomes.restored_container(kept, sandbox_id) == outcomes.restored_container(
            long, sandbox_id
        )


def test_each_outcome_is_one_line() -> None:
    where = "2026-11-25T03:00:00Z default/counter"
    assert outcomes.line(NOW) == f"{where}/main restored from /c/nightly"
    failed = NOW._replace(outcome=FAILED, reason="why")
    assert outcomes.line(failed) == f"{where}/main restore failed: why"
    of_pod = failed._replace(container="", error="NoRoom")
    assert outcomes.line(of_pod) == f"{where} checkpoint failed: why (NoRoom)"
    sealed = of_pod._replace(outcome=outcomes.SEALED, error="")
    assert outcomes.line(sealed) == f"{where} checkpoint sealed: /c/nightly"


def test_a_line_controls_no_terminal() -> None:
    hostile = NOW._replace(outcome=FAILED, reason="a\nb\x1b[2J\ud800", warnings=("c\x07",))
    where = "2026-11-25T03:00:00Z default/counter/main"
    assert outcomes.line(hostile) == f"{where} restore failed: a?b?[2J?\n  warning: c?"


@pytest.mark.parametrize(
    "value",
    [
        {"timeline": [{"phase": "all", "seconds": float("nan")}]},
        {"timeline": [{"phase": "all", "seconds": 1.0, "begin_s": float("inf")}]},
        {"timeline": [{"phase": "all", "seconds": 1.0, "size_bytes": "many"}]},
        {"timeline": [{"phase": "all"}]},
        {"timeline": ["all"]},
        {"warnings": [1]},
        {"pod": None},
        {"outcome": "moved"},
        {"time": "yesterday"},
        {"time": "2027-13-01T00:00:00Z"},
    ],
)
def test_what_is_no_record_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(FailedPreconditionError, match=f"a record.* {next(iter(value))}"):
        outcomes.parse(json.dumps([NOW._asdict() | value]).encode())


@pytest.mark.parametrize("data", [b"", b"[{", b"{}", b"[1]", b"\xff", b"[" * 100_000])
def test_what_is_no_list_of_records_is_refused(data: bytes) -> None:
    with pytest.raises(FailedPreconditionError):
        outcomes.parse(data)
