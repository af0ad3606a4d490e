"""Fixtures: a cluster of its own with grit's manager and agents, and names for what tests make."""

from __future__ import annotations

import itertools
import os
from typing import cast

import pytest

from integration.kubernetes import cluster, grit
from integration.kubernetes.objects import KINDS, until

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.kubernetes.cluster import Cluster
    from integration.kubernetes.grit import Manager
    from integration.node.rootfs import Edition

EDITION = "forky"  # where objects of the API server are tried
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
    """Nothing of an earlier test is left."""
    until("nothing is left", lambda: not kubernetes.get(KINDS)["items"])


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    """Objects of the API server become the same calls of agents on any edition: one is enough,
    but for those who have time."""
    if "GRIT_LONG" in os.environ:
        return
    other = [
        item
        for item in items
        if "manager" in item.fixturenames
        and cast("Edition", item.callspec.params["edition"]).suite != EDITION
    ]
    config.hook.pytest_deselected(items=other)
    items[:] = [item for item in items if item not in other]
