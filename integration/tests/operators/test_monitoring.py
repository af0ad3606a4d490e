"""What watches nodes: alerts, and a dashboard whose queries find what has happened on a node."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from grit_runtime.agent import tracing
from grit_runtime.config import Config
from grit_runtime.model import manifest as manifests
from grit_runtime.proto import agent_pb2
from integration import prometheus
from integration.node import rootfs
from integration.node.cri import CriError
from integration.pods import agents, checkpoints, workload
from integration.requirements import do_without
from tests.agent.collector import collecting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.node.network import Network
    from integration.prometheus import Prometheus
    from integration.tests.conftest import Nodes, RunPod

ALERTS = prometheus.MONITORING / "alerts.yaml"
ALERTS_TEST = Path(__file__).with_name("alerts-test.yaml")
CLONE = (("grit.dev/restore-name", "watched"), ("grit.dev/clone", "true"))
LOST = (("grit.dev/restore-name", "nowhere"),)


@pytest.fixture(scope="module")
def programs() -> Iterator[Path]:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        do_without("nodes", "no Prometheus without root and apt-get")
    with prometheus.use() as directory:
        yield directory


def promtool(programs: Path, *words: str) -> None:
    argv = [str(programs / "promtool"), *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_raised_where_it_should_be_and_nowhere_else(programs: Path) -> None:
    promtool(programs, "check", "rules", str(ALERTS))
    promtool(programs, "test", "rules", str(ALERTS_TEST))
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    tested = {
        (one["alertname"], bool(one["exp_alerts"]))
        for test in yaml.safe_load(ALERTS_TEST.read_text())["tests"]
        for one in test["alert_rule_test"]
    }
    names = [rule["alert"] for rule in group["rules"]]
    assert tested >= {(name, True) for name in names}


@pytest.fixture
def watched(nodes: Nodes, programs: Path, tmp_path: Path) -> Iterator[Prometheus]:
    """Prometheus on the first node, whose agent it reads."""
    enter = ["nsenter", f"--net=/proc/{nodes.a.pid}/ns/net", "--"]
    ports = {"metrics": Config().agent_metrics, "api": Config().agent_api_port}
    found = [
        prometheus.discovered("grit-agent", f"127.0.0.1:{number}", port=name, node="node-a")
        for name, number in ports.items()
    ]
    with (
        agents.running(nodes),
        prometheus.running(programs, tmp_path, found, enter=enter) as server,
    ):
        yield server
    for node in nodes:
        node.run(["rm", "-rf", str(agents.DIRECTORY)])


def move_and_fail(nodes: Nodes, run_pod: RunPod) -> None:
    """A pod is checkpointed, its checkpoint pushed, restored, and another restore has failed."""
    source = run_pod(nodes.a, workload.counter_pod("watched"))
    workload.wait_for_count(source, 5)
    request = agent_pb2.CheckpointRequest(
        target="default/watched", name="watched", after="running", push="peer://node-b"
    )
    assert agents.asked(nodes.a, "Checkpoint", request).state == "done"
    run_pod(nodes.a, workload.counter_pod("watched-2", annotations=CLONE))
    with pytest.raises(CriError, match="nowhere"):
        run_pod(nodes.a, workload.counter_pod("watched-3", annotations=LOST))
    checkpoints.take(source, "held", "--after", "frozen")


@pytest.mark.usefixtures("fresh_nodes")
def test_the_dashboard_shows_what_has_happened_on_a_node(
    nodes: Nodes, run_pod: RunPod, watched: Prometheus
) -> None:
    watched.wait_for('grit_restores_total{outcome="failed"} == 0', bool)
    move_and_fail(nodes, run_pod)
    for query, value in (
        ('grit_checkpoints_total{outcome="sealed"}', 2),
        ('grit_restores_total{outcome="restored"}', 1),
        ('grit_restores_total{outcome="failed"}', 1),
        ('grit_phase_seconds_count{act="checkpoint", phase="paused"}', 1),
        ('grit_phase_seconds_count{act="restore", phase="all"}', 1),
        ('grit_failures_total{act="restore", reason="NotFound"}', 1),
        ("grit_held_pods", 1),
    ):
        of_node = query.replace("{", "{instance='node-a', ")
        watched.wait_for(f"({of_node}) == {value}", bool)
    for query in prometheus.queries():
        if "grit_manager" not in query:
            watched.wait_for(query, bool)
    assert watched.ask('grit_moved_bytes_total{direction="out"} > 1e5')
    assert [one["metric"]["job"] for one in watched.ask("up")] == ["grit-agent"]
    raised = {one["metric"]["alertname"] for one in watched.ask("ALERTS")}
    assert raised == {"GritPodHeld", "GritManagerGone"}


@pytest.mark.usefixtures("fresh_nodes")
def test_a_move_is_one_trace_across_both_nodes(
    nodes: Nodes, network: Network, run_pod: RunPod
) -> None:
    for node in nodes:
        site_packages = node.root / rootfs.site_packages(node.edition)
        rootfs.install(rootfs.part("tracing"), site_packages, python=node.edition.python)
    with (
        collecting(network.listening()) as collector,
        agents.running(
            nodes,
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
            OTEL_BSP_SCHEDULE_DELAY="100",
        ),
    ):
        source = run_pod(nodes.a, workload.counter_pod("traced"))
        workload.wait_for_count(source, 5)
        request = agent_pb2.CheckpointRequest(
            target="default/traced", name="traced", after="frozen", push="peer://node-b"
        )
        assert agents.asked(nodes.a, "Checkpoint", request).state == "done"
        annotations = (("grit.dev/restore-name", "traced"),)
        run_pod(nodes.b, workload.counter_pod("traced-2", annotations=annotations))
        names = (tracing.CHECKPOINT, "checkpoint job", "prepare job", tracing.RESTORE)
        found = collector.wait_for(*names)
    manifest = checkpoints.directory(nodes.b, "traced") / manifests.FILE_NAME
    sha256 = hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert {one.span.trace_id.hex() for one in found} == {sha256[:32]}
    of_node = {one.span.name: one.resource["k8s.node.name"] for one in found}
    assert [of_node[name] for name in names] == ["node-a", "node-a", "node-b", "node-b"]
    assert {"freeze", "dump", "seal", "verify", "read back"} <= of_node.keys()
    times = {one.span.name: one.span.start_time_unix_nano for one in found}
    order = ("checkpoint job", tracing.CHECKPOINT, "freeze", "dump", tracing.RESTORE, "verify")
    assert [times[name] for name in order] == sorted(times[name] for name in order)
    for node in nodes:
        node.run(["rm", "-rf", str(agents.DIRECTORY)])
