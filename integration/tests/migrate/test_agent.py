"""A pod that agents move: asked on the first node's socket, restored on the second."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from grit_runtime.agent import client
from grit_runtime.errors import HeldError, NotFoundError, PodStateError
from grit_runtime.model import compatibility
from grit_runtime.proto import agent_pb2
from integration.pods import agents, checkpoints, workload
from tests.store import made

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

    from integration.node.node import Node
    from integration.tests.conftest import Nodes, RunPod

SIZE_BYTES = 48 * made.MIB

Reply = TypeVar("Reply", bound="Message")

pytestmark = pytest.mark.usefixtures("fresh_nodes")


@pytest.fixture
def joined(nodes: Nodes) -> Iterator[None]:
    """Both nodes have agents."""
    with agents.running(nodes):
        yield


@pytest.mark.usefixtures("joined")
def test_a_pod_is_taken_carried_and_restored_by_agents(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, workload.counter_pod("by-agent", ballast_mib=64))
    workload.wait_for_count(source, 10)
    request = agent_pb2.CheckpointRequest(
        target="default/by-agent", name="carried", after="frozen", push="peer://node-b"
    )
    job = agents.asked(nodes.a, "Checkpoint", request)
    assert (job.state, job.phase, job.text) == ("done", "push", "")
    carried = (checkpoints.directory(nodes.b, "carried") / "counter/container.log").read_text()

    annotations = (("grit.dev/restore-name", "carried"),)
    target = run_pod(nodes.b, workload.counter_pod("from-agent", annotations=annotations))
    workload.assert_goes_on_from(target, len(carried.splitlines()), node=nodes.b)
    jobs = json.loads(nodes.b.run(["grit", "agent", "status", "--json"]).stdout)
    (there,) = [job for job in jobs if job["name"] == "carried"]
    assert (there["kind"], there["state"], there["url"]) == (
        *("prepare", "done"),
        "peer://node-a:9465",
    )
    assert len(list(nodes.b.path(Path("/run/grit/verified")).iterdir())) == 1


def once(node: Node, action: str, source: Path, target: Path, *words: str) -> None:
    """A job of upstream's manager."""
    directories = ("--src-dir", str(source), "--dst-dir", str(target))
    node.run(["grit", "agent", "--action", action, *directories, *words])


def test_a_pod_is_moved_by_two_jobs_of_upstream_s_manager(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, workload.counter_pod("by-jobs", ballast_mib=64))
    workload.wait_for_count(source, 10)
    here, volume = checkpoints.ROOT / "default/by-jobs", Path("/mnt/volume/default/by-jobs")
    nodes.a.run(["mkdir", "-p", str(here)])
    nodes.a.run(["mount", "--bind", str(here), str(here)])  # as the job has it
    words = ["--target-pod-namespace", "default", "--target-pod-name", "by-jobs"]
    try:
        with pytest.raises(AssertionError, match="it is another pod of that name"):
            once(nodes.a, "checkpoint", here, volume, *words, "--target-pod-uid", "another")
        once(nodes.a, "checkpoint", here, volume, *words, "--target-pod-uid", source.spec.uid)
        taken = made.content(nodes.a.path(volume))
        assert made.content(nodes.a.path(here)) == taken
        once(nodes.a, "checkpoint", here, volume, *words)
        assert made.content(nodes.a.path(volume)) == taken
    finally:
        nodes.a.run(["umount", str(here)])
    lines = len(taken["counter/container.log"].splitlines())
    workload.wait_for_count(source, lines + 10)

    shutil.copytree(nodes.a.path(volume), nodes.b.path(volume))
    once(nodes.b, "restore", volume, here)
    annotations = (("grit.dev/restore-name", "by-jobs"),)
    target = run_pod(nodes.b, workload.counter_pod("from-jobs", annotations=annotations))
    workload.assert_goes_on_from(target, lines, node=nodes.b)


@pytest.mark.usefixtures("joined")
def test_a_checkpoint_that_is_cancelled_leaves_the_pod_as_it_was(
    nodes: Nodes, run_pod: RunPod
) -> None:
    pod = run_pod(nodes.a, workload.counter_pod("cancelled", ballast_mib=64))
    workload.wait_for_count(pod, 5)
    request = agent_pb2.CheckpointRequest(target="default/cancelled", after="running")
    job = agents.begun(nodes.a, "Checkpoint", request)
    *_, last = client.cancelled(job.id, agents.socket_of(nodes.a))
    assert last.state in {"cancelled", "done"}  # it may be too late
    is_there = checkpoints.directory(nodes.a, "cancelled").exists()
    assert is_there == (last.state == "done")
    assert checkpoints.left_by_checkpoints(nodes.a) == []
    workload.wait_for_count(pod, 20)


def on_its_way(nodes: Nodes, name: str) -> agent_pb2.Job:
    """A job of node B that has brought a part of a checkpoint of node A; the link is slow."""
    root = nodes.a.path(checkpoints.ROOT)
    made.checkpoint(root, name, {"main/checkpoint/pages-1.img": made.noise(SIZE_BYTES)})
    job = agents.begun(
        nodes.b,
        "Prepare",
        agent_pb2.PrepareRequest(namespace=made.ROOT, name=name, source="peer://node-a"),
    )
    socket = agents.socket_of(nodes.b)
    for now in client.followed(job.id, socket):
        if now.done_bytes > SIZE_BYTES // 8:
            return now
    raise AssertionError("it was too fast")


def ended(nodes: Nodes, job: agent_pb2.Job) -> agent_pb2.Job:
    *_, last = client.followed(job.id, agents.socket_of(nodes.b))
    return last


def assert_is_there(nodes: Nodes, name: str) -> None:
    source, target = (checkpoints.directory(node, name) for node in nodes)
    assert made.content(target) == made.content(source)
    shutil.rmtree(source)
    shutil.rmtree(target)


@pytest.fixture
def slow_link(nodes: Nodes) -> Iterator[None]:
    """What node A sends goes at 100 Mbit/s."""
    shape = ["rate", "100mbit", "burst", "256kb", "latency", "200ms"]
    nodes.a.run(["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", *shape])
    yield
    nodes.a.run(["tc", "qdisc", "del", "dev", "eth0", "root"])


@contextmanager
def dropping(node: Node, *which: str) -> Iterator[None]:
    """Packets of peers' connections do not arrive at *node*: all, or *which* iptables matches."""
    rule = ["-p", "tcp", "--sport", "9465", *which, "-j", "DROP"]
    node.run(["iptables", "-I", "INPUT", *rule])
    yield
    node.run(["iptables", "-D", "INPUT", *rule])


@pytest.mark.usefixtures("joined", "slow_link")
def test_a_link_that_loses_packets_is_only_slower(nodes: Nodes) -> None:
    with dropping(nodes.b, "-m", "statistic", "--mode", "random", "--probability", "0.01"):
        job = ended(nodes, on_its_way(nodes, "lossy"))
    assert (job.state, job.text) == ("done", "")
    assert_is_there(nodes, "lossy")


@pytest.mark.usefixtures("joined", "slow_link")
def test_a_link_that_is_down_for_a_while_is_waited_for(nodes: Nodes) -> None:
    begun = on_its_way(nodes, "down")
    with dropping(nodes.b):
        time.sleep(30 if "GRIT_LONG" in os.environ else 3)
    job = ended(nodes, begun)
    assert (job.state, job.text) == ("done", "")
    assert_is_there(nodes, "down")


@pytest.mark.usefixtures("joined", "slow_link")
def test_an_agent_that_is_killed_goes_on_when_it_is_started_again(nodes: Nodes) -> None:
    begun = on_its_way(nodes, "killed")
    with ExitStack() as stack:
        agents.kill(nodes.b)
        agents.start(nodes.b, stack)
        job = ended(nodes, begun)
        assert (job.state, job.text) == ("done", "")
        assert job.moved_bytes < SIZE_BYTES
        assert_is_there(nodes, "killed")


@pytest.mark.usefixtures("joined", "slow_link")
def test_a_peer_that_is_killed_is_named_and_waited_for(nodes: Nodes) -> None:
    begun = on_its_way(nodes, "gone")
    with ExitStack() as stack:
        agents.kill(nodes.a)
        followed = client.followed(begun.id, agents.socket_of(nodes.b))
        waiting = next(now for now in followed if now.reason)
        assert "node-a" in waiting.text
        assert not checkpoints.directory(nodes.b, "gone").exists()
        agents.start(nodes.a, stack)
        job = ended(nodes, begun)
        assert (job.state, job.text) == ("done", "")
        assert job.moved_bytes < SIZE_BYTES
        assert_is_there(nodes, "gone")


def told(node: Node, method: str, request: Message, reply: type[Reply]) -> Reply:
    return client.asked(method, request, reply, agents.socket_of(node))


@pytest.mark.usefixtures("joined")
def test_a_held_pod_runs_on_when_the_agent_is_asked_as_often_as_it_is(
    nodes: Nodes, run_pod: RunPod
) -> None:
    pod = run_pod(nodes.a, workload.counter_pod("resumed"))
    workload.wait_for_count(pod, 5)
    request = agent_pb2.CheckpointRequest(
        target="default/resumed", after="frozen", uid=pod.spec.uid
    )
    assert agents.asked(nodes.a, "Checkpoint", request).state == "done"
    seen = pod.logs("counter").split()
    meant = agent_pb2.ResumeRequest(target="default/resumed", uid="another-uid")
    with pytest.raises(PodStateError, match="expected another-uid: it is another pod"):
        told(nodes.a, "Resume", meant, agent_pb2.ResumeReply)
    assert pod.logs("counter").split() == seen
    meant.uid, meant.checkpoint = pod.spec.uid, "another"
    with pytest.raises(HeldError, match="is held for checkpoint resumed, expected another"):
        told(nodes.a, "Resume", meant, agent_pb2.ResumeReply)
    assert pod.logs("counter").split() == seen
    meant.checkpoint = "resumed"
    for _ in range(2):
        told(nodes.a, "Resume", meant, agent_pb2.ResumeReply)
    workload.wait_for_count(pod, len(seen) + 5)
    with pytest.raises(NotFoundError):
        told(nodes.a, "Resume", agent_pb2.ResumeRequest(target="default/none"), agent_pb2.Job)


@pytest.mark.usefixtures("joined")
def test_checkpoints_of_one_pod_that_are_asked_for_at_once_are_taken_in_turn(
    nodes: Nodes, run_pod: RunPod
) -> None:
    pod = run_pod(nodes.a, workload.counter_pod("turns"))
    workload.wait_for_count(pod, 5)
    jobs = [
        told(
            nodes.a,
            "Checkpoint",
            agent_pb2.CheckpointRequest(target="default/turns", name=name, after="running"),
            agent_pb2.Job,
        )
        for name in ("turns-1", "turns-2", "turns-3")
    ]
    ends = [list(client.followed(job.id, agents.socket_of(nodes.a)))[-1] for job in jobs]
    assert [(end.state, end.text) for end in ends] == 3 * [("done", "")]
    workload.wait_for_count(pod, len(pod.logs("counter").split()) + 5)


@pytest.mark.usefixtures("joined")
def test_another_pod_of_the_name_is_not_checkpointed(nodes: Nodes, run_pod: RunPod) -> None:
    run_pod(nodes.a, workload.counter_pod("pinned"))
    request = agent_pb2.CheckpointRequest(
        target="default/pinned", after="running", uid="uid-of-old"
    )
    job = agents.asked(nodes.a, "Checkpoint", request)
    assert (job.state, job.reason) == ("failed", "PodNotReady")
    assert "expected uid-of-old: it is another pod of that name" in job.text
    assert not checkpoints.directory(nodes.a, "pinned").exists()


@pytest.mark.usefixtures("joined")
def test_a_restore_is_told_to_who_follows_the_pod_s_records(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, workload.counter_pod("told"))
    workload.wait_for_count(source, 5)
    request = agent_pb2.CheckpointRequest(target="default/told", after="stopped", pod_is_going=True)
    assert agents.asked(nodes.a, "Checkpoint", request).state == "done"
    ref = agent_pb2.CheckpointRef(namespace="default", name="told")
    described = told(nodes.a, "Describe", ref, agent_pb2.Description)
    facts = told(nodes.a, "Facts", agent_pb2.FactsRequest(), agent_pb2.FactsReply)
    here = compatibility.parse_facts(facts.facts.encode(), "facts")
    assert facts.node == "node-a"
    assert here.node.criu
    assert (
        compatibility.verdict(compatibility.parse_facts(described.needs.encode(), "needs"), here)
        == []
    )
    assert described.phases["dump"] > 0

    annotations = (("grit.dev/restore-name", "told"),)
    target = run_pod(nodes.a, workload.counter_pod("listener", annotations=annotations))
    followed = agent_pb2.RecordsRequest(pod_uid=target.spec.uid, follow=True)
    replies = client.streamed(
        "Records", followed, agent_pb2.RecordsReply, agents.socket_of(nodes.a)
    )
    records = next(filter(None, (json.loads(reply.records) for reply in replies)))
    assert [(one["outcome"], one["manifest_sha256"]) for one in records] == [
        ("restored", described.sha256)
    ]
    removed = agent_pb2.RemoveRequest(namespace="default", name="told")
    told(nodes.a, "Remove", removed, agent_pb2.RemoveReply)
    assert not checkpoints.directory(nodes.a, "told").exists()
