from __future__ import annotations

from grit_runtime.manager import targets


def test_a_restore_s_name_is_its_pods_label_if_it_can_be() -> None:
    assert targets.label("nightly") == "nightly"
    assert targets.label("n" * 63) == "n" * 63


def test_a_longer_name_is_cut_and_still_one_restore_s() -> None:
    names = ["n" * 63 + end for end in ("a", "b", "." + "c" * 180)]
    labels = {targets.label(name) for name in names}
    assert len(labels) == len(names)
    assert max(map(len, labels)) <= 63
