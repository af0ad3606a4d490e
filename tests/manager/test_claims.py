"""What the Restores are called that the manager makes."""

from __future__ import annotations

import pytest

from grit_runtime.manager import claims


@pytest.mark.parametrize(
    "name",
    ["short", "a" * 253, f"{'a' * 244}.{'b' * 8}"],
    ids=["short", "long", "with a dot"],
)
def test_a_number_makes_a_name_that_an_object_can_have(name: str) -> None:
    assert claims.free_name(name, set()) == name
    second = claims.free_name(name, {name})
    assert claims.free_name(name, {name, second}) not in {name, second}
    assert second.endswith("-2")
    assert len(second) <= 253
    assert ".-" not in second
