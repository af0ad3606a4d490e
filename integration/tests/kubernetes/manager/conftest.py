"""Fixtures: a cluster of its own with grit's manager and agents, and names for what tests make."""

from __future__ import annotations

import itertools

import pytest

from integration.kubernetes import cluster, grit
from integration.kubernetes.objects import KINDS, until

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.kubernetes.cluster import Cluster
    from integration.kubernetes.grit import Manager
    from integration.node.rootfs import Edition

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def kubernetes(edition: Edition, compiled: None) -> Iterator[Cluster]:  # noqa: ARG001 -- the same
    """A cluster that no other tests have anything in."""
    with cluster.running(edition) as running:
        yield running


@pytest.fixture(scope="session")
def manager(kubernetes: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    """grit's manager and agents in the cluster with nodes."""
    log = tmp_path_factory.mktemp("manager") / "manager.log"
    with grit.installed(kubernetes, log) as running:
        yield running


@pytest.fixture
def name(
    request: pytest.FixtureRequest,
    kubernetes: Cluster,
    manager: Manager,  # noqa: ARG001 -- it has to be there
) -> Iterator[str]:
    """A name for what a test makes, all of which goes when it has ended."""
    room = request.module.__name__.rpartition(".test_")[2].replace("_", "-")
    yield f"{room}-{next(_NUMBERS)}"
    kubernetes.kubectl("delete", KINDS, "--all", "--wait=false", "--grace-period=1")


@pytest.fixture
def alone(kubernetes: Cluster) -> None:
    """Nothing of an earlier test is left. A kubelet of 1.20 may take a minute for a pod that
    was deleted before it had a container."""

    def is_empty() -> bool:
        return not kubernetes.get(KINDS)["items"]

    until("nothing is left", is_empty, timeout_s=2 * grit.TIMEOUT_S)
