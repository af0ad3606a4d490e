"""A manager that knows only what was: it has stood still while others went on."""

from __future__ import annotations

import time

import pytest

from grit_runtime.manager import patience
from grit_runtime.manager.api import SUCCEEDED
from integration.kubernetes import grit, pods
from integration.kubernetes.grit import Manager
from integration.kubernetes.objects import (
    assert_goes_on,
    assert_one_goes_on,
    living,
    made,
    reached,
    started,
    until,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from integration.kubernetes.cluster import Cluster

SHIFT = 1000  # of another manager's ports
LEASE_S = 15
TIMEOUT_S = 40
SERVES = "the manager serves"


@pytest.mark.parametrize("phase", ["Checkpointing", "Restoring"])
def test_a_manager_that_has_stood_still_goes_on_with_a_move(
    kubernetes: Cluster, manager: Manager, name: str, phase: str
) -> None:
    pod = started(kubernetes, pods.deployment(pods.counter(name)))
    kubernetes.apply(made("Migration", name, podName=pod))
    reached(kubernetes, "migration", name, phase)
    with manager.stopped():
        time.sleep(LEASE_S + 5)  # its connections have said much, and its Lease is over
    status = grit.ended(kubernetes, "migration", name, SUCCEEDED)
    assert_one_goes_on(kubernetes, f"app={name}", pod, status)


@pytest.fixture
def other(kubernetes: Cluster, manager: Manager, tmp_path: Path) -> Iterator[Manager]:  # noqa: ARG001
    """Another manager, which leads when the first one does not."""
    other = Manager(kubernetes, tmp_path / "other.log", SHIFT)
    until("it serves", lambda: SERVES in other.log)
    yield other
    other.stop()


def test_a_manager_that_leads_no_longer_takes_back_nothing(
    kubernetes: Cluster, manager: Manager, other: Manager, name: str
) -> None:
    """Its own time for the move is over, while another has verified the target."""
    pod = started(kubernetes, pods.counter(name))
    kubernetes.apply(made("Migration", name, podName=pod, timeoutSeconds=TIMEOUT_S))
    reached(kubernetes, "migration", name, "Restoring")
    with manager.stopped():
        status = grit.ended(kubernetes, "migration", name, SUCCEEDED)
        assert status["phase"] == SUCCEEDED, status
        assert "this manager leads" in other.log
        migration = kubernetes.get("migration", name)
        until("its time is over", lambda: patience.left_s(TIMEOUT_S, migration) == 0)
        begun = manager.log.count(SERVES)
    until("it has begun anew", lambda: manager.log.count(SERVES) > begun)
    assert kubernetes.get("migration", name)["status"]["phase"] == SUCCEEDED
    assert_goes_on(kubernetes, status["targetPod"])
    (left,) = living(kubernetes, f"app={name}")
    assert left["metadata"]["name"] == status["targetPod"]
