"""Calls of the agent about this node's checkpoints and pods, over its socket."""

from __future__ import annotations

import json
from threading import Event
from typing import TYPE_CHECKING

import pytest

from grit_runtime.agent import client, job
from grit_runtime.agent.job import Job
from grit_runtime.agent.jobs import Jobs
from grit_runtime.errors import (
    AlreadyExistsError,
    AnnotationError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    StoreBusyError,
)
from grit_runtime.host import records
from grit_runtime.model import compatibility, outcomes
from grit_runtime.model.hold import Hold
from grit_runtime.pod import held_pods
from grit_runtime.proto import agent_pb2
from grit_runtime.store import catalog, push
from grit_runtime.store.backend import open_store
from tests.agent import nodes
from tests.outcomes import NOW
from tests.store import made

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from grit_runtime.agent.progress import Progress, Slots
    from grit_runtime.model.outcomes import Outcome
    from tests.agent.nodes import Node

ONE = agent_pb2.CheckpointRef(namespace=made.ROOT, name="one")


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A node with an agent; this process keeps records and holds where that does."""
    node = nodes.node(tmp_path, "node-a")
    for module in (records, held_pods):
        directory = node.directory / "state" / module.DIR.rpartition("/")[2]
        monkeypatch.setattr(module, "DIR", str(directory))
    with nodes.agent(node):
        yield node


def describe(node: Node) -> agent_pb2.Description:
    return client.asked("Describe", ONE, agent_pb2.Description, node.socket)


def remove(node: Node) -> None:
    request = agent_pb2.RemoveRequest(namespace=made.ROOT, name="one")
    client.asked("Remove", request, agent_pb2.RemoveReply, node.socket)


def test_a_checkpoint_is_described_by_its_manifest(node: Node) -> None:
    directory = made.checkpoint(node.root, "one", {"main/pages": made.noise(3 * made.MIB)})
    told = describe(node)
    assert (told.size_bytes, told.gpu_bytes) == (3 * made.MIB, 0)
    assert (told.created, list(told.containers)) == ("2026-11-29T00:00:00Z", ["main"])
    assert told.sha256 == made.seal(directory, "one")
    needs = compatibility.parse_facts(told.needs.encode(), "needs")
    assert needs.gpus == ()


def test_what_is_not_there_is_not_described_and_its_removal_is_done(node: Node) -> None:
    with pytest.raises(NotFoundError, match="default/one does not exist"):
        describe(node)
    remove(node)


def test_a_checkpoint_is_removed_once_no_pod_is_held_for_it(node: Node) -> None:
    directory = made.checkpoint(node.root, "one", {"main/pages": b"taken here"})
    sha256 = made.seal(directory, "one")
    hold = Hold(
        "", made.ROOT, "counter", "uid-1", "", "", str(directory), sha256, {}, is_whole=True
    )
    held_pods.keep(hold)
    with pytest.raises(FailedPreconditionError, match="what pod default/counter is held for"):
        remove(node)
    assert describe(node).sha256 == sha256
    held_pods.drop("uid-1")
    remove(node)
    assert list((node.root / made.ROOT).iterdir()) == []


def test_a_checkpoint_goes_from_its_store_too_and_others_of_its_name_do_not(
    node: Node, tmp_path: Path
) -> None:
    store = open_store(str(tmp_path / "store"), make=True)
    pushed = []
    for content in (b"of before", b"of now"):
        directory = made.checkpoint(node.root, "one", {"main/pages": content})
        pushed.append(push.push(str(directory), store, None, lambda *_: None).entry.sha256)
    request = agent_pb2.RemoveRequest(namespace=made.ROOT, name="one", store=store.url)
    with pytest.raises(InvalidArgumentError, match="expected 64 hexadecimal digits"):
        client.asked("Remove", request, agent_pb2.RemoveReply, node.socket)
    request.sha256 = pushed[1]
    for _ in range(2):  # once more does no harm
        client.asked("Remove", request, agent_pb2.RemoveReply, node.socket)
        assert [entry.sha256 for entry in catalog.entries(store)] == pushed[:1]
    assert not (node.root / made.ROOT / "one").exists()
    request.store = "peer://node-b"
    with pytest.raises(InvalidArgumentError, match="is a peer, expected a store"):
        client.asked("Remove", request, agent_pb2.RemoveReply, node.socket)


def test_a_checkpoint_is_not_removed_while_a_job_works_on_it(node: Node, tmp_path: Path) -> None:
    other = nodes.node(tmp_path, "localhost")
    made.checkpoint(other.root, "one", {"main/pages": made.noise(32 * made.MIB)})
    with (
        nodes.serving(other.root, other.own, "localhost") as peer,
        nodes.Gate(peer.port, 16 << 20) as gate,
    ):
        url = f"peer://localhost:{gate.port}"
        request = agent_pb2.PrepareRequest(namespace=made.ROOT, name="one", source=url)
        job = client.asked("Prepare", request, agent_pb2.Job, node.socket)
        assert gate.is_full.wait(30)
        with pytest.raises(FailedPreconditionError, match=f"what job {job.id} works on"):
            remove(node)
        gate.open()
        *_, last = client.followed(job.id, node.socket)
        assert last.state == "done"
    remove(node)
    assert not (node.root / made.ROOT / "one").exists()


def test_a_peer_may_be_elsewhere_than_its_name_leads(node: Node, tmp_path: Path) -> None:
    other = nodes.node(tmp_path, "node-b")
    made.checkpoint(other.root, "one", {"main/pages": b"content"})
    with nodes.serving(other.root, other.own, "node-b") as peer:
        url = f"peer://node-b:{peer.port}"
        request = agent_pb2.PrepareRequest(namespace=made.ROOT, name="one", source=url)
        request.host = nodes.HOST
        job = client.asked("Prepare", request, agent_pb2.Job, node.socket)
        *_, last = client.followed(job.id, node.socket)
    assert (last.state, last.text) == ("done", "")


def outcome(pod_uid: str, what: str) -> Outcome:
    return NOW._replace(outcome=what, namespace=made.ROOT, pod_uid=pod_uid)


def test_records_are_told_and_told_again_when_they_change(node: Node) -> None:
    request = agent_pb2.RecordsRequest(pod_uid="uid-1", follow=True)
    stream = client.streamed("Records", request, agent_pb2.RecordsReply, node.socket)
    assert json.loads(next(stream).records) == []
    records.append(outcome("uid-2", outcomes.FAILED))
    records.append(outcome("uid-1", outcomes.RESTORED))
    assert [one["outcome"] for one in json.loads(next(stream).records)] == ["restored"]
    records.append(outcome("uid-1", outcomes.SEALED))
    assert [one["outcome"] for one in json.loads(next(stream).records)] == ["restored", "sealed"]
    request.follow = False
    (now,) = client.streamed("Records", request, agent_pb2.RecordsReply, node.socket)
    assert len(json.loads(now.records)) == 2


@pytest.mark.parametrize("uid", ["", "../uid-1", "a/b", "u" * 65, "uid\n"])
def test_no_uid_leads_out_of_the_records(node: Node, uid: str) -> None:
    request = agent_pb2.RecordsRequest(pod_uid=uid)
    with pytest.raises(InvalidArgumentError, match="expected a pod's"):
        list(client.streamed("Records", request, agent_pb2.RecordsReply, node.socket))


def test_volumes_that_cannot_be_captured_are_refused_at_once(node: Node) -> None:
    request = agent_pb2.CheckpointRequest(target="default/counter", after="running")
    request.capture.extend(["shm", "hostpath:data"])
    with pytest.raises(AnnotationError, match="'hostpath:data' is neither shm nor emptydir:NAME"):
        client.asked("Checkpoint", request, agent_pb2.Job, node.socket)
    assert client.status(node.socket) == []


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    """Jobs that do nothing until they are to stop."""
    may_end = Event()

    def work(_progress: Progress, _slots: Slots) -> None:
        may_end.wait()

    jobs = Jobs(str(tmp_path), work, 1, lambda *_: None)
    yield jobs
    may_end.set()
    assert jobs.stop(10)


def test_a_checkpoint_s_name_is_one_pod_s_while_it_is_taken(jobs: Jobs) -> None:
    wanted = Job("", job.CHECKPOINT, made.ROOT, "one", target="default/counter", uid="uid-1")
    first = jobs.submit(wanted)
    assert jobs.submit(wanted) == first
    for other in (wanted._replace(target="default/other"), wanted._replace(uid="uid-2")):
        with pytest.raises(AlreadyExistsError, match=f"of another pod, by job {first.id}"):
            jobs.submit(other)


@pytest.mark.parametrize(
    ("running", "asked", "text"),
    [
        (Job("", job.PREPARE, "", "", sha256="a"), {"sha256": ""}, ""),
        (Job("", job.PREPARE, "", "", sha256="a", url="peer://a"), {"url": "peer://b"}, ""),
        (Job("", job.PREPARE, "", "", sha256="a"), {"sha256": "b"}, "that is sha256:a, expected"),
        (Job("", job.PREPARE, "", ""), {"sha256": "b"}, "whichever is the newest, expected"),
        (Job("", job.PUSH, "", "", sha256="a", url="/a"), {"sha256": "b"}, "that is sha256:a, e"),
        (Job("", job.PUSH, "", "", url="/a"), {"url": "/b"}, "puts it to /a, expected /b"),
        (Job("", job.CHECKPOINT, "", "", url="/a"), {"url": ""}, ""),
        (Job("", job.CHECKPOINT, "", ""), {"url": "/b"}, "puts it nowhere, expected /b"),
    ],
)
def test_a_job_is_joined_by_who_gets_from_it_what_he_asks_for(
    jobs: Jobs, running: Job, asked: dict[str, str], text: str
) -> None:
    running = running._replace(namespace=made.ROOT, name="one")
    first = jobs.submit(running)
    if not text:
        assert jobs.submit(running._replace(**asked)) == first  # type: ignore[arg-type]
        return
    with pytest.raises(StoreBusyError, match=f"default/one: job {first.id} .*{text}.*; wait until"):
        jobs.submit(running._replace(**asked))  # type: ignore[arg-type]
