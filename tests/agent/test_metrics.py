"""What Prometheus reads of an agent, which is a process."""

from __future__ import annotations

import socket
import time
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from grit_runtime.host import records
from grit_runtime.model import outcomes
from grit_runtime.pod import held_pods
from tests.agent import nodes
from tests.agent.test_daemon import checkpoint, ended, prepare
from tests.model.test_hold import HOLD, RESUMED
from tests.outcomes import NOW

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.agent.nodes import Node


@pytest.fixture
def target(tmp_path: Path) -> Node:
    return nodes.node(tmp_path, "node-b")


def test_metrics_say_what_was_moved_and_how_jobs_ended(target: Node, tmp_path: Path) -> None:
    source = nodes.node(tmp_path, "localhost")
    checkpoint(source, size_mib=8)
    with (
        nodes.serving(source.root, source.own, "localhost") as address,
        agent_with_metrics(target) as port,
    ):
        peer = f"peer://localhost:{address.port}"
        ended(target, prepare(target, peer))
        ended(target, prepare(target, peer, "none"))
        text = read(port, "metrics")
        assert read(port, "healthz") == "ok\n"
    for line in (
        'grit_moved_bytes_total{direction="in"} 8.388608e+06',
        'grit_jobs_total{kind="prepare",outcome="done",reason=""} 1.0',
        'grit_jobs_total{kind="prepare",outcome="failed",reason="NotFound"} 1.0',
        'grit_job_seconds_count{kind="prepare"} 2.0',
        'grit_jobs_now{state="queued"} 0.0',
        "grit_copies_bytes 8.388608e+06",
    ):
        assert line in text


def test_metrics_say_what_became_of_checkpoints_and_restores(
    target: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "DIR", str(target.directory / "state/records"))
    monkeypatch.setattr(held_pods, "DIR", str(target.directory / "state/held"))
    phase = {"phase": "verify", "begin_s": 0.0, "epoch_s": 1.0, "seconds": 0.25, "size_bytes": 4096}
    not_read = {**phase, "seconds": 0.01, "record": "unchanged"}
    failed = NOW._replace(outcome=outcomes.FAILED, error="MountDiffers", timeline=(phase,))
    records.append(failed)  # before there is an agent
    with agent_with_metrics(target) as port:
        wait_for(port, 'grit_restores_total{outcome="failed"} 0.0')
        records.append(failed._replace(container_id="id-2"))
        records.append(failed._replace(outcome=outcomes.COLD, binds=True))
        records.append(NOW._replace(outcome=outcomes.COLD, reason="as it should be"))
        records.append(NOW._replace(timeline=(not_read,), pod_uid="other"))
        held_pods.keep(HOLD)
        held_pods.keep(RESUMED._replace(pod_uid="resumed"))
        records.append(NOW._replace(outcome=outcomes.SEALED, container="", pod_uid="another"))
        wait_for(
            port,
            'grit_restores_total{outcome="failed"} 1.0',
            'grit_restores_total{outcome="cold_on_failure"} 1.0',
            'grit_restores_total{outcome="cold"} 1.0',
            'grit_restores_total{outcome="restored"} 1.0',
            'grit_checkpoints_total{outcome="sealed"} 1.0',
            'grit_failures_total{act="restore",reason="MountDiffers"} 2.0',
            'grit_phase_seconds_count{act="restore",phase="verify"} 3.0',
            'grit_phase_seconds_sum{act="restore",phase="verify"} 0.51',
            'grit_phase_bytes_total{act="restore",phase="verify"} 8192.0',
            'grit_phase_seconds_count{act="restore",phase="all"} 0.0',
            "grit_held_pods 1.0",
        )


@contextmanager
def agent_with_metrics(node: Node) -> Iterator[int]:
    """The port at which the node's agent shows them."""
    with socket.create_server((nodes.HOST, 0)) as free:
        port = free.getsockname()[1]
    with nodes.agent(node, metrics=port):
        yield port


def test_records_that_a_newer_grit_has_written_are_passed_over(
    target: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "DIR", str(target.directory / "state/records"))
    records.append(NOW)
    path = target.directory / "state/records/uid.json"
    path.write_text(path.read_text().replace('"binds"', '"colour": 7, "binds"'))
    with agent_with_metrics(target) as port:
        records.append(NOW._replace(pod_uid="other"))
        wait_for(port, 'grit_restores_total{outcome="restored"} 1.0')
    assert "has the field 'colour'" in (target.directory / "log").read_text()


def wait_for(port: int, *lines: str) -> None:
    """Wait until the metrics have these lines."""
    deadline_s = time.monotonic() + 30
    while missing := [line for line in lines if line not in read(port, "metrics")]:
        assert time.monotonic() < deadline_s, missing
        time.sleep(0.02)


def read(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://{nodes.HOST}:{port}/{path}", timeout=10) as answer:
        text: str = answer.read().decode()
        return text
