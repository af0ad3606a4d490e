"""Traces of what has happened on nodes, as a collector gets them from their agents."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from grit_runtime.agent import tracing
from grit_runtime.host import records
from grit_runtime.model import outcomes
from tests.agent import nodes
from tests.agent.collector import collecting
from tests.agent.test_daemon import ended, prepare
from tests.outcomes import NOW
from tests.store import made

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from grit_runtime.model.outcomes import Outcome
    from tests.agent.collector import Collector
    from tests.agent.nodes import Node

ERROR, UNSET = Status.STATUS_CODE_ERROR, Status.STATUS_CODE_UNSET
BEGAN_S = 1_800_000_000.25
SHA256 = "5" * 64
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture
def source(tmp_path: Path) -> Node:
    """The node that has checkpoints; other nodes find it by its name."""
    return nodes.node(tmp_path, "localhost")


@pytest.fixture
def target(tmp_path: Path) -> Node:
    return nodes.node(tmp_path, "node-b")


def sending(endpoint: str, node: str = "node-a") -> dict[str, str]:
    """The environment of an agent that sends traces at once."""
    return {ENDPOINT: endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50", "NODE_NAME": node}


def write(node: Node, outcome: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    """Record it, as whoever takes and restores checkpoints does."""
    monkeypatch.setattr(records, "DIR", str(node.directory / "state/records"))
    records.append(outcome)


def phases(*names: str, begin_s: float) -> tuple[dict[str, Any], ...]:
    """A timeline whose phases take a tenth of a second each."""
    return tuple(
        {"phase": name, "begin_s": at / 10, "epoch_s": begin_s + at / 10, "seconds": 0.1}
        for at, name in enumerate(names)
    )


def sealed(sha256: str) -> Outcome:
    freeze, dump = phases("freeze", "dump", begin_s=BEGAN_S)
    return NOW._replace(
        outcome=outcomes.SEALED,
        container="",
        container_id="",
        manifest_sha256=sha256,
        timeline=(freeze, {**dump, "container": "main", "size_bytes": 4096}),
    )


def restored(sha256: str) -> Outcome:
    whole = {"phase": "all", "begin_s": 0.0, "epoch_s": BEGAN_S + 9, "seconds": 0.2}
    each = phases("verify", "restore", begin_s=BEGAN_S + 9)
    return NOW._replace(manifest_sha256=sha256, timeline=(*each, whole))


def failed(sha256: str) -> Outcome:
    verify, restore = phases("verify", "restore", begin_s=BEGAN_S)
    return NOW._replace(
        outcome=outcomes.FAILED,
        reason="CRIU could not",
        error="RestoreFailed",
        manifest_sha256=sha256,
        timeline=(verify, {**restore, "failed": True}),
    )


def test_a_move_is_one_trace_across_both_nodes(
    source: Node, target: Node, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made.checkpoint(source.root, "one", {"main/pages": made.noise(made.MIB)})
    sha256 = made.seal(path, "one")
    with (
        nodes.agent(source, environment=sending(collector.endpoint, "node-a")),
        nodes.agent(target, environment=sending(collector.endpoint, "node-b")),
    ):
        write(source, sealed(sha256), monkeypatch)
        assert ended(target, prepare(target, f"peer://localhost:{source.port}")).state == "done"
        write(target, restored(sha256), monkeypatch)
        found = collector.wait_for(tracing.CHECKPOINT, "prepare job", tracing.RESTORE)
    assert {one.span.trace_id.hex() for one in found} == {sha256[:32]}
    by_name = {one.span.name: one for one in found}
    assert {name: one.resource["k8s.node.name"] for name, one in by_name.items()} == {
        **dict.fromkeys((tracing.CHECKPOINT, "freeze", "dump"), "node-a"),
        **dict.fromkeys(("prepare job", tracing.RESTORE, "verify", "restore"), "node-b"),
    }
    first, last = (by_name[name].span.span_id for name in (tracing.CHECKPOINT, tracing.RESTORE))
    assert {name: one.span.parent_span_id for name, one in by_name.items()} == {
        tracing.CHECKPOINT: b"",
        **dict.fromkeys(("freeze", "dump", "prepare job", tracing.RESTORE), first),
        **dict.fromkeys(("verify", "restore"), last),
    }


def test_spans_have_the_times_and_names_of_the_record(
    source: Node, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nodes.agent(source, environment=sending(collector.endpoint)):
        write(source, sealed(SHA256), monkeypatch)
        by_name = {one.span.name: one for one in collector.wait_for(tracing.CHECKPOINT)}
    act, dump = by_name[tracing.CHECKPOINT], by_name["dump"]
    for one, began_s in ((act, BEGAN_S), (dump, BEGAN_S + 0.1)):
        assert one.span.start_time_unix_nano / 1e9 == pytest.approx(began_s, abs=1e-3)
        assert one.span.end_time_unix_nano / 1e9 == pytest.approx(BEGAN_S + 0.2, abs=1e-3)
    assert act.attributes == {
        "k8s.namespace.name": "default",
        "k8s.pod.name": "counter",
        "k8s.pod.uid": "uid",
        "grit.checkpoint": "/c/nightly",
        "grit.manifest_sha256": SHA256,
        "grit.outcome": "sealed",
    }
    assert dump.attributes == {"k8s.container.name": "main", "grit.size_bytes": "4096"}
    assert act.resource["service.name"] == "grit-agent"


def test_what_has_failed_says_so_and_why(
    source: Node, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nodes.agent(source, environment=sending(collector.endpoint)):
        write(source, failed(SHA256), monkeypatch)
        by_name = {one.span.name: one for one in collector.wait_for(tracing.RESTORE)}
    act = by_name[tracing.RESTORE]
    assert (act.span.status.code, act.span.status.message) == (ERROR, "CRIU could not")
    assert act.attributes["error.type"] == "RestoreFailed"
    assert {name: one.span.status.code for name, one in by_name.items()} == {
        tracing.RESTORE: ERROR,
        "restore": ERROR,
        "verify": UNSET,
    }


def test_what_no_digest_is_known_of_is_a_trace_of_its_own(
    source: Node, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    with nodes.agent(source, environment=sending(collector.endpoint)):
        for pod in ("one", "two"):
            write(source, failed("")._replace(pod=pod, pod_uid=pod), monkeypatch)
        cold = NOW._replace(outcome=outcomes.COLD, reason="as it should be", pod_uid="three")
        write(source, cold, monkeypatch)
        write(source, sealed(SHA256)._replace(pod_uid="four"), monkeypatch)
        found = collector.wait_for(tracing.CHECKPOINT)
    acts = [one for one in found if one.span.name == tracing.RESTORE]
    assert sorted(one.attributes["k8s.pod.name"] for one in acts) == ["one", "two"]
    assert len({one.span.trace_id for one in acts}) == 2
    assert {one.span.parent_span_id for one in acts} == {b""}


def test_names_of_the_environment_count_more_than_the_agent_s(
    source: Node, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = "service.name=mover,deployment.environment.name=test"
    named = {**sending(collector.endpoint), "OTEL_RESOURCE_ATTRIBUTES": own}
    with nodes.agent(source, environment=named):
        write(source, restored(SHA256), monkeypatch)
        (one, *_) = collector.wait_for(tracing.RESTORE)
    assert one.resource["service.name"] == "mover"
    assert one.resource["deployment.environment.name"] == "test"


def test_records_of_before_are_not_sent_again(
    source: Node, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(source, restored(SHA256), monkeypatch)
    with nodes.agent(source, environment=sending(collector.endpoint)):
        write(source, sealed(SHA256), monkeypatch)
        found = collector.wait_for(tracing.CHECKPOINT)
    assert {one.span.name for one in found} == {tracing.CHECKPOINT, "freeze", "dump"}


def test_what_ends_just_before_the_agent_does_is_sent(
    source: Node, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = {**sending(collector.endpoint), "OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    with nodes.agent(source, environment=never) as process:
        write(source, restored(SHA256), monkeypatch)
        process.terminate()
        assert process.wait(timeout=15) == 0
    collector.wait_for(tracing.RESTORE, timeout_s=0)


def test_a_collector_that_is_away_is_a_warning_and_no_more(
    source: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    with collecting() as gone:
        endpoint = gone.endpoint
    with nodes.agent(source, environment=sending(endpoint)) as process:
        write(source, restored(SHA256), monkeypatch)
        while 'msg="traces are not sent"' not in (source.directory / "log").read_text():
            assert process.poll() is None
            time.sleep(0.02)
        begin_s = time.monotonic()
        process.terminate()
        assert process.wait(timeout=15) == 0
    assert time.monotonic() - begin_s < 8


def test_without_an_endpoint_nothing_of_opentelemetry_is_loaded() -> None:
    code = "import sys; from grit_runtime.agent import daemon; print(*sys.modules)"
    names = set(python(code).stdout.split())
    assert "grit_runtime.agent.metrics" in names
    assert not any(name.startswith("opentelemetry") for name in names)


def test_an_endpoint_without_the_package_is_an_error_that_says_so() -> None:
    code = """
import sys
sys.modules["opentelemetry"] = None
from grit_runtime.agent import daemon
daemon._tracing()
"""
    told = python(code, check=False).stderr
    assert "FailedPreconditionError: OTEL_EXPORTER_OTLP_ENDPOINT or" in told
    assert "need the Python package opentelemetry; install grit-runtime[tracing]" in told


def python(code: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", code]
    return subprocess.run(argv, capture_output=True, text=True, check=check)
