"""The holds of a node's pods, and when they are over."""

from pathlib import Path

import pytest

from grit_runtime import paths
from grit_runtime.pod import held_pods
from tests.model.test_hold import HOLD, RESUMED


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node with no pod on it."""
    for name in ("held", "logs", "volumes"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(held_pods, "DIR", str(tmp_path / "held"))
    monkeypatch.setattr(paths, "POD_LOGS_DIR", str(tmp_path / "logs"))
    monkeypatch.setattr(held_pods, "_POD_VOLUMES_DIR", str(tmp_path / "volumes"))
    return tmp_path


def test_a_hold_is_read_back_as_it_was_written(node: Path) -> None:
    held_pods.keep(HOLD)
    assert held_pods.of(HOLD.pod_uid) == HOLD
    assert held_pods.every() == [HOLD]
    assert held_pods.of("another") is None
    assert [path.name for path in (node / "held").iterdir()] == [HOLD.pod_uid]


@pytest.mark.usefixtures("node")
def test_with_the_last_that_was_killed_a_hold_is_over() -> None:
    held_pods.keep(RESUMED._replace(awaited=("app", "proxy")))
    held_pods.restored(RESUMED.pod_uid, "app")
    left = held_pods.of(RESUMED.pod_uid)
    assert left is not None
    assert left.awaited == ("proxy",)
    held_pods.restored(RESUMED.pod_uid, "proxy")
    assert held_pods.every() == []


@pytest.mark.usefixtures("node")
def test_a_restore_before_the_hold_ends_nothing() -> None:
    held_pods.keep(HOLD)
    held_pods.restored(HOLD.pod_uid, "app")
    assert held_pods.of(HOLD.pod_uid) == HOLD


@pytest.mark.parametrize("trace", ["runc/sandbox-7", "logs/shop_cart-7_uid-7", "volumes/uid-7"])
def test_a_hold_lasts_as_long_as_anything_of_its_pod(node: Path, trace: str) -> None:
    held_pods.keep(HOLD._replace(runc_root=str(node / "runc")))
    (node / trace).mkdir(parents=True)
    held_pods.drop_gone()
    assert len(held_pods.every()) == 1
    (node / trace).rmdir()
    held_pods.drop_gone()
    assert held_pods.every() == []
