"""A manager that knows only what was: it has stood still while others went on."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from grit_runtime.manager import patience
from grit_runtime.manager.api import FAILED, SUCCEEDED
from integration.kubernetes import grit, pods
from integration.kubernetes.cluster import NODES
from integration.kubernetes.grit import Manager
from integration.kubernetes.objects import (
    assert_counts_on,
    assert_one_goes_on,
    cordoned,
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

# What a manager does that has heard of the object when it was younger.
AGAIN = """
import asyncio, sys
from lightkube import AsyncClient
from lightkube.config.kubeconfig import KubeConfig
from grit_runtime.manager import migrations
from grit_runtime.manager.cluster import Cluster
from grit_runtime.manager.world import World

async def main():
    async with AsyncClient(KubeConfig.from_env()) as client:
        await migrations.run(World(Cluster(client), None, None, ""), "default", sys.argv[1])

asyncio.run(main())
"""
SHIFT = 1000  # of another manager's ports
LEASE_S = 15
TIMEOUT_S = 30
SERVES = "the manager serves"

LONG = "GRIT_LONG" in os.environ


@pytest.mark.parametrize("phase", ["Checkpointing", "Restoring"] if LONG else ["Restoring"])
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


def test_a_move_that_has_failed_is_left_as_it_is_by_a_manager_that_has_not_heard_of_it(
    kubernetes: Cluster, name: str
) -> None:
    pod = started(kubernetes, pods.counter(name))
    with cordoned(kubernetes, *NODES):
        kubernetes.apply(made("Migration", name, podName=pod))
        status = grit.ended(kubernetes, "migration", name, SUCCEEDED)
    assert status["phase"] == FAILED, status
    argv = [*kubernetes.plane.enter_argv(), sys.executable, "-c", AGAIN, name]
    subprocess.run(argv, check=True)
    assert kubernetes.get("migration", name)["status"] == status
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
    assert_counts_on(kubernetes, status["targetPod"])
    (left,) = living(kubernetes, f"app={name}")
    assert left["metadata"]["name"] == status["targetPod"]
