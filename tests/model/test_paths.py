"""Which of several places a path lies on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.model.paths import nearest_mount

PATHS = st.lists(st.sampled_from(["a", "b", "ab"]), max_size=4).map(lambda p: "/" + "/".join(p))


@given(PATHS, st.sets(PATHS))
def test_the_longest_place_that_holds_a_path_is_found(path: str, places: set[str]) -> None:
    holding = [p for p in places if path != p and path.startswith(p.rstrip("/") + "/")]
    assert nearest_mount(path, places) == max(holding, key=len, default="/")
