"""Fixtures: clusters, and their logs where a test fails."""

from __future__ import annotations

import os
from typing import cast

import pytest

from integration.kubernetes import cluster, programs
from integration.requirements import do_without, is_required

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from integration.kubernetes.cluster import Cluster
    from integration.kubernetes.grit import Manager
    from integration.node.rootfs import Edition


@pytest.fixture(scope="session")
def compiled() -> None:
    """What a cluster is made of; where it is required it is compiled, or waited for."""
    if os.geteuid() != 0:
        do_without("kubernetes", "no cluster without root")
    if not (programs.is_built() or is_required("kubernetes")):
        pytest.skip("no Kubernetes; integration/kubernetes/build compiles it")


@pytest.fixture(scope="session")
def control_plane(compiled: None) -> Iterator[Cluster]:  # noqa: ARG001 -- what it is made of
    """A cluster without nodes, for all tests that need no more."""
    with cluster.control_plane() as running:
        yield running


@pytest.fixture(scope="session")
def kubernetes(edition: Edition, compiled: None) -> Iterator[Cluster]:  # noqa: ARG001 -- the same
    """A cluster with two nodes of an edition, for all tests on it."""
    with cluster.running(edition) as running:
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the cluster has logged to the report of a test that failed on it."""
    report = yield
    for name in ("control_plane", "kubernetes"):
        if report.failed and name in item.funcargs:
            logs = cast("Cluster", item.funcargs[name]).collect_logs()
            report.sections.append((f"logs of {name}", logs))
    if report.failed and "manager" in item.funcargs:
        running = cast("Manager", item.funcargs["manager"])
        report.sections.append(("objects", running.objects()))
        report.sections.append(("log of the manager", running.log))
    return report
