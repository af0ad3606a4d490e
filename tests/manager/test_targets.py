"""A pod's label names its Restore, whatever that is called."""

from __future__ import annotations

import re

import pytest

from grit_runtime.manager import targets

# k8s.io/apimachinery pkg/util/validation, IsValidLabelValue.
VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")


@pytest.mark.parametrize("name", ["nightly", "a" * 63])
def test_a_name_that_is_a_value_is_the_value(name: str) -> None:
    assert targets.value(name) == name


@pytest.mark.parametrize("name", ["a" * 64, "a" * 253, f"{'a' * 44}-.-.{'b' * 30}"])
def test_a_longer_name_has_a_value_of_its_own(name: str) -> None:
    value = targets.value(name)
    assert len(value) <= 63
    assert VALUE.fullmatch(value)
    assert targets.value(f"{name}c") != value
