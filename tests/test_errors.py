"""Errors and their reasons, on their way from one process to another."""

from __future__ import annotations

import pytest

from grit_runtime import errors
from grit_runtime.errors import GritError, of_reason, reason

KINDS = [one for one in vars(errors).values() if isinstance(one, type)]
REASONS = sorted({one.reason for one in KINDS if issubclass(one, GritError)} - {""})


@pytest.mark.parametrize("name", REASONS)
def test_a_reason_comes_back_as_an_error_of_it(name: str) -> None:
    assert reason(of_reason(name)("what has happened")) == name


@pytest.mark.parametrize("error", [OSError(2, "is not there"), ValueError("a fault of grit")])
def test_what_has_no_reason_of_its_own_has_one_there_too(error: Exception) -> None:
    assert reason(of_reason(reason(error))("what has happened")) == reason(error)


def test_no_error_is_without_a_reason() -> None:
    assert reason(of_reason("OfANewerGrit")("what has happened")) == errors.INTERRUPTED
