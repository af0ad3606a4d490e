"""The manager with many objects at once, on nodes in name only (integration/kubernetes/many.py)."""

from __future__ import annotations

import pytest

from integration.kubernetes import many

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.kubernetes.many import Many

COUNT = 50  # each waits for three things: more than httpx has connections

pytestmark = pytest.mark.xdist_group("many")


@pytest.fixture(scope="module")
def fleet(
    compiled: None,  # noqa: ARG001 -- what it is made of
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Many]:
    with many.running(tmp_path_factory.mktemp("many") / "manager.log") as running:
        yield running


def test_many_checkpoints_at_once_are_all_taken(fleet: Many) -> None:
    told = fleet.asked("Checkpoint", COUNT)
    assert [phase for phase, _ in told["ended"].values()] == ["Checkpointed"] * COUNT


def test_many_migrations_at_once_all_succeed(fleet: Many) -> None:
    told = fleet.asked("Migration", COUNT)
    assert [phase for phase, _ in told["ended"].values()] == ["Succeeded"] * COUNT
