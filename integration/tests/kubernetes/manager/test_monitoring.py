"""The dashboard shows what has happened in a cluster."""

from __future__ import annotations

import pytest

from grit_runtime.config import Config
from grit_runtime.manager import names
from grit_runtime.manager.api import SUCCEEDED
from integration import prometheus
from integration.kubernetes import grit, pods
from integration.kubernetes.objects import made, started

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from integration.kubernetes.cluster import Cluster
    from integration.kubernetes.grit import Manager
    from integration.prometheus import Prometheus


def found(kubernetes: Cluster) -> list[dict[str, Any]]:
    """What Prometheus would find: the manager beside the control plane, and the agents' pods."""
    address = f"127.0.0.1:{names.METRICS_PORT}"
    label = f"app.kubernetes.io/name={names.AGENT}"
    listed = kubernetes.get("pods", "-n", names.NAMESPACE, "-l", label)["items"]
    return [
        prometheus.discovered(names.MANAGER, address, port="metrics", node="none"),
        *(
            prometheus.discovered(
                names.AGENT,
                f"{pod['status']['podIP']}:{Config().agent_metrics}",
                port="metrics",
                node=pod["spec"]["nodeName"],
            )
            for pod in listed
        ),
    ]


@pytest.fixture
def watched(
    kubernetes: Cluster,
    manager: Manager,  # noqa: ARG001 -- it is what is watched
    tmp_path: Path,
) -> Iterator[Prometheus]:
    enter = kubernetes.plane.enter_argv()
    with (
        prometheus.use() as programs,
        prometheus.running(programs, tmp_path, found(kubernetes), enter=enter) as server,
    ):
        yield server


def test_the_dashboard_shows_a_move_and_one_that_has_failed(
    kubernetes: Cluster, name: str, watched: Prometheus
) -> None:
    watched.wait_for("sum(grit_manager_leads) == 1", bool)
    pod = started(kubernetes, pods.counter(name))
    kubernetes.apply(made("Migration", f"{name}-nowhere", podName=pod, nodeName="node-z"))
    assert grit.ended(kubernetes, "migration", f"{name}-nowhere")["phase"] == "Failed"
    kubernetes.apply(made("Migration", name, podName=pod))
    assert grit.ended(kubernetes, "migration", name, SUCCEEDED)["phase"] == SUCCEEDED
    for query in prometheus.queries():
        if "grit_manager" in query:
            watched.wait_for(query, bool)
    watched.wait_for('sum(grit_restores_total{outcome="restored"}) > 0', bool)
    for query in (
        'grit_manager_object_seconds_count{kind="Migration", phase="Succeeded"} > 0',
        'grit_manager_object_seconds_count{kind="Migration", phase="Failed"} > 0',
        'grit_moved_bytes_total{direction="in"} > 1e5',
        'ALERTS{alertname="GritObjectsFail", kind="Migration", alertstate="firing"}',
    ):
        watched.wait_for(query, bool)
    up = {(one["metric"]["job"], one["metric"]["instance"]) for one in watched.ask("up == 1")}
    assert up == {
        ("grit-manager", "grit-manager-x7k2p"),
        ("grit-agent", "node-a"),
        ("grit-agent", "node-b"),
    }
