"""The agent as a process, asked over its socket; other nodes' agents are processes too."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import time
from typing import TYPE_CHECKING

import pytest

from grit_runtime.agent import client, service
from grit_runtime.agent import job as jobs
from grit_runtime.agent.job import Job
from grit_runtime.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from grit_runtime.proto import agent_pb2
from tests.agent import nodes
from tests.store import made

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.agent.nodes import Node


@pytest.fixture
def source(tmp_path: Path) -> Node:
    """The node that has checkpoints; other nodes find it by its name."""
    return nodes.node(tmp_path, "localhost")


@pytest.fixture
def target(tmp_path: Path) -> Node:
    return nodes.node(tmp_path, "node-b")


@pytest.fixture
def peer(source: Node) -> Iterator[str]:
    """Where the source serves its checkpoints."""
    with nodes.serving(source.root, source.own, "localhost") as address:
        yield f"peer://localhost:{address.port}"


def asked(node: Node, method: str, request: object) -> agent_pb2.Job:
    """The job that a call has begun."""
    with client._called(node.socket) as channel:
        call = channel.unary_unary(
            f"/{service.SERVICE}/{method}",
            type(request).SerializeToString,  # type: ignore[attr-defined]
            agent_pb2.Job.FromString,
        )
        job: agent_pb2.Job = call(request, timeout=10)
        return job


def prepare(node: Node, source: str, name: str = "one") -> agent_pb2.Job:
    request = agent_pb2.PrepareRequest(namespace=made.ROOT, name=name, source=source)
    return asked(node, "Prepare", request)


def ended(node: Node, job: agent_pb2.Job) -> agent_pb2.Job:
    """The job, once it has ended."""
    *_, last = client.followed(job.id, node.socket)
    return last


def checkpoint(source: Node, name: str = "one", size_mib: int = 64) -> Path:
    data = made.noise(size_mib * made.MIB)
    return made.checkpoint(source.root, name, {"main/pages": data})


def came(source: Node, target: Node, name: str = "one") -> bool:
    """Whether the target has what the source has, and says that it is verified."""
    paths = [node.root / made.ROOT / name for node in (source, target)]
    verified = list((target.directory / "run/verified").iterdir())
    return made.content(paths[0]) == made.content(paths[1]) and len(verified) == 1


def test_a_prepared_checkpoint_is_here_and_verified(source: Node, target: Node, peer: str) -> None:
    checkpoint(source)
    with nodes.agent(target):
        job = ended(target, prepare(target, peer))
        assert (job.state, job.done_bytes, job.moved_bytes) == ("done", 64 << 20, 64 << 20)
        assert came(source, target)
        assert list((target.directory / "run/arrivals" / made.ROOT).iterdir()) == []
        again = ended(target, prepare(target, peer))
        assert (again.state, again.moved_bytes) == ("done", 0)
        assert again.id != job.id
        assert [one.id for one in client.status(target.socket)] == [job.id, again.id]


def test_a_checkpoint_is_announced_while_it_comes(source: Node, target: Node, peer: str) -> None:
    checkpoint(source)
    with nodes.agent(target), nodes.Gate(port_of(peer), 16 << 20) as gate:
        job = prepare(target, f"peer://localhost:{gate.port}")
        assert gate.is_full.wait(30)
        path = target.directory / "run/arrivals" / made.ROOT / "one/announcement.json"
        assert json.loads(path.read_bytes())["size_bytes"] == 64 << 20
        gate.open()
        assert ended(target, job).state == "done"


def announcements(node: Node) -> list[str]:
    return [path.name for path in (node.directory / "run/arrivals").glob("*/*")]


def test_an_older_copy_gives_way_and_what_was_taken_here_does_not(
    source: Node, target: Node, peer: str
) -> None:
    for name in ("one", "own"):
        made.checkpoint(source.root, name, {"main/pages": b"of last night"})
    own = made.checkpoint(target.root, "own", {"main/pages": b"taken here"})
    record = target.directory / "state/agent/copies" / made.ROOT / "one.json"
    with nodes.agent(target):
        assert ended(target, prepare(target, peer)).state == "done"
        os.utime(record, (0, 0))
        made.checkpoint(source.root, "one", {"main/pages": b"of this night"})
        assert ended(target, prepare(target, peer)).state == "done"
        assert came(source, target)
        refused = ended(target, prepare(target, peer, "own"))
    assert (refused.state, refused.reason) == ("failed", "AlreadyExists")
    assert (own / "main/pages").read_bytes() == b"taken here"
    assert announcements(target) == []


def waiting(node: Node, job: agent_pb2.Job) -> agent_pb2.Job:
    """The job, once it waits for a peer that is lost."""
    return next(now for now in client.followed(job.id, node.socket) if now.reason)


def lost_in_the_middle(source: Node, target: Node, gate: nodes.Gate) -> agent_pb2.Job:
    """A job whose peer has ended when a part had come."""
    checkpoint(source)
    with nodes.agent(source):
        job = prepare(target, f"peer://localhost:{gate.port}")
        assert gate.is_full.wait(30)
    gate.open()
    return job


def test_a_peer_that_is_lost_is_waited_for(source: Node, target: Node) -> None:
    with nodes.agent(target), nodes.Gate(source.port, 24 << 20) as gate:
        job = waiting(target, lost_in_the_middle(source, target, gate))
        assert (job.state, job.reason) == ("queued", "Unavailable")
        assert "peer localhost" in job.text
        other = checkpoint(source, "two", 1)
        with nodes.serving(source.root, source.own, "localhost") as address:
            between = prepare(target, f"peer://localhost:{address.port}", "two")
            assert ended(target, between).state == "done"  # the one slot is free
        shutil.rmtree(other)
        with nodes.agent(source):
            job = ended(target, job)
        assert (job.state, job.text, job.reason) == ("done", "", "")
        assert 0 < job.moved_bytes < 64 << 20
    assert made.content(source.root) == {
        path: data
        for path, data in made.content(target.root).items()
        if not path.startswith("default/two")
    }


def test_a_peer_that_stays_away_is_given_up(source: Node, target: Node) -> None:
    with nodes.agent(target, lost_s=0), nodes.Gate(source.port, 24 << 20) as gate:
        job = ended(target, lost_in_the_middle(source, target, gate))
        assert (job.state, job.reason) == ("failed", "Unavailable")
        assert "peer localhost" in job.text
        assert not (target.root / made.ROOT / "one").exists()


def test_a_job_that_waits_for_a_peer_is_cancelled(source: Node, target: Node) -> None:
    with nodes.agent(target), nodes.Gate(source.port, 24 << 20) as gate:
        job = waiting(target, lost_in_the_middle(source, target, gate))
        *_, last = client.cancelled(job.id, target.socket)
        assert (last.state, last.text, last.reason) == ("cancelled", "", "")
        assert announcements(target) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_an_agent_that_ends_takes_its_job_up_again(
    source: Node, target: Node, peer: str, how: signal.Signals
) -> None:
    checkpoint(source)
    with nodes.Gate(port_of(peer), 24 << 20) as gate:
        with nodes.agent(target) as process:
            job = prepare(target, f"peer://localhost:{gate.port}")
            assert gate.is_full.wait(30)
            process.send_signal(how)
            process.wait(timeout=15)
        gate.open()
        with nodes.agent(target):
            done = ended(target, job)
    assert (done.id, done.state) == (job.id, "done")
    assert 0 < done.moved_bytes < 60 << 20
    assert came(source, target)


def test_an_agent_that_is_started_again_waits_for_its_peer(source: Node, target: Node) -> None:
    checkpoint(source)
    with nodes.Gate(source.port, 24 << 20) as gate:
        with nodes.agent(source), nodes.agent(target):
            job = prepare(target, f"peer://localhost:{gate.port}")
            assert gate.is_full.wait(30)
        gate.open()
        with nodes.agent(target):
            now = waiting(target, job)
            assert (now.state, now.reason) == ("queued", "Unavailable")
            path = target.directory / "run/arrivals" / made.ROOT / "one/announcement.json"
            assert json.loads(path.read_bytes())["failed"] == ""
            with nodes.agent(source):
                done = ended(target, job)
    assert (done.state, done.text) == ("done", "")
    assert 0 < done.moved_bytes < 60 << 20
    assert came(source, target)


def test_a_peer_that_does_not_answer_at_the_beginning_is_not_waited_for(
    source: Node, target: Node
) -> None:
    request = agent_pb2.PrepareRequest(namespace=made.ROOT, name="one", sha256="ab" * 32)
    request.source = f"peer://localhost:{source.port}"
    with nodes.agent(target):
        job = ended(target, asked(target, "Prepare", request))
    assert (job.state, job.reason) == ("failed", "Unavailable")


def test_what_nobody_has_gone_on_with_for_a_day_is_removed_at_the_start(target: Node) -> None:
    old, new = (target.root / made.ROOT / f".{name}.{16 * 'a'}.pull" for name in ("old", "new"))
    for left in (old, new):
        left.mkdir(parents=True)
    two_days_ago_s = time.time() - 2 * 86400
    os.utime(old, (two_days_ago_s, two_days_ago_s))
    with nodes.agent(target):
        assert list((target.root / made.ROOT).iterdir()) == [new]


def test_a_second_request_joins_the_first(source: Node, target: Node, peer: str) -> None:
    checkpoint(source)
    with nodes.agent(target), nodes.Gate(port_of(peer), 16 << 20) as gate:
        first = prepare(target, f"peer://localhost:{gate.port}")
        assert gate.is_full.wait(30)
        assert prepare(target, peer).id == first.id
        gate.open()
        assert ended(target, first).state == "done"


def test_jobs_move_data_in_turn_and_a_cancelled_one_lets_the_next(
    source: Node, target: Node, peer: str
) -> None:
    for name in ("one", "two", "three"):
        checkpoint(source, name, 32)
    with nodes.agent(target), nodes.Gate(port_of(peer), 16 << 20) as gate:
        first = prepare(target, f"peer://localhost:{gate.port}")
        assert gate.is_full.wait(30)
        second, third = prepare(target, peer, "two"), prepare(target, peer, "three")
        states = {job.id: job.state for job in client.status(target.socket)}
        assert [states[job.id] for job in (first, second, third)] == ["running", "queued", "queued"]
        *_, gone = client.cancelled(second.id, target.socket)
        assert gone.state == "cancelled"
        call = agent_pb2.JobRequest(id=first.id)
        asked(target, "Cancel", call)
        gate.open()
        assert ended(target, first).state == "cancelled"
        assert ended(target, third).state == "done"
    assert not (target.root / made.ROOT / "one").exists()
    assert not (target.root / made.ROOT / "two").exists()


def test_what_is_pushed_to_a_peer_is_pulled_by_its_agent(source: Node, target: Node) -> None:
    checkpoint(target)
    with nodes.agent(source), nodes.agent(target):
        url = f"peer://localhost:{source.port}"
        request = agent_pb2.PushRequest(namespace=made.ROOT, name="one", target=url)
        job = ended(target, asked(target, "Push", request))
        assert (job.state, job.text, job.moved_bytes) == ("done", "", 64 << 20)
        assert came(target, source)
        (there,) = client.status(source.socket)
        assert (there.kind, there.url) == ("prepare", f"peer://node-b:{target.port}")


def test_a_push_is_of_the_checkpoint_that_was_there_when_it_was_asked_for(
    source: Node, target: Node, peer: str, tmp_path: Path
) -> None:
    checkpoint(source)
    checkpoint(target, "two", 1)
    request = agent_pb2.PushRequest(namespace=made.ROOT, name="two", target=str(tmp_path / "store"))
    with nodes.agent(target), nodes.Gate(port_of(peer), 16 << 20) as gate:
        before = prepare(target, f"peer://localhost:{gate.port}")
        assert gate.is_full.wait(30)
        job = asked(target, "Push", request)  # which waits for its turn
        made.checkpoint(target.root, "two", {"main/pages": b"taken since"})
        gate.open()
        ended(target, before)
        job = ended(target, job)
    assert (job.state, job.reason) == ("failed", "FailedPrecondition")
    assert "default/two is another one now" in job.text


def test_a_push_to_a_peer_that_just_brings_another_of_the_name_is_refused(
    source: Node, target: Node, tmp_path: Path
) -> None:
    made.checkpoint(tmp_path / "c", "one", {"main/pages": made.noise(64 * made.MIB)})
    checkpoint(target, size_mib=1)
    with (
        nodes.serving(tmp_path / "c", source.own, "localhost") as address,
        nodes.Gate(address.port, 16 << 20) as gate,
        nodes.agent(source),
        nodes.agent(target),
    ):
        brought = prepare(source, f"peer://localhost:{gate.port}")
        assert gate.is_full.wait(30)
        url = f"peer://localhost:{source.port}"
        request = agent_pb2.PushRequest(namespace=made.ROOT, name="one", target=url)
        job = ended(target, asked(target, "Push", request))
        gate.open()
        ended(source, brought)
    assert (job.state, job.reason) == ("failed", "StoreBusy")
    assert f"job {brought.id} is of the one" in job.text


def test_a_push_to_a_peer_fails_with_the_reason_of_its_agent(source: Node, target: Node) -> None:
    checkpoint(target, size_mib=1)
    made.checkpoint(source.root, "one", {"main/other": b"another of that name"})
    with nodes.agent(source), nodes.agent(target):
        url = f"peer://localhost:{source.port}"
        request = agent_pb2.PushRequest(namespace=made.ROOT, name="one", target=url)
        job = ended(target, asked(target, "Push", request))
    assert (job.state, job.reason) == ("failed", "AlreadyExists")
    assert "peer localhost: " in job.text


def test_a_checkpoint_without_containerd_fails_with_its_reason(target: Node) -> None:
    request = agent_pb2.CheckpointRequest(target="default/counter", after="running")
    with nodes.agent(target):
        job = ended(target, asked(target, "Checkpoint", request))
    assert (job.state, job.phase) == ("failed", "checkpoint")
    assert job.reason
    assert job.text


def test_a_checkpoint_that_was_cut_is_not_repeated(target: Node) -> None:
    target.jobs.mkdir(parents=True)
    cut = Job("0" * 16, jobs.CHECKPOINT, "default", "counter", phase=jobs.CHECKPOINT)
    jobs.write(str(target.jobs), cut._replace(state=jobs.RUNNING, target="default/counter"))
    (target.jobs / f"{'1' * 16}.json").write_text('{"id": 7}')
    (target.jobs / f"{'2' * 16}.json").write_text("cut")
    with nodes.agent(target):
        (job,) = client.status(target.socket)
    assert (job.state, job.reason) == ("failed", "Interrupted")
    assert "take it again" in job.text


@pytest.mark.parametrize("name", ["../one", "..", "n" * 300, "", "a/b"])
def test_no_name_leads_out_of_the_checkpoints(target: Node, name: str) -> None:
    with nodes.agent(target):
        with pytest.raises(InvalidArgumentError, match="checkpoint name"):
            prepare(target, "/mnt/store", name)
        with pytest.raises(InvalidArgumentError, match="neither a store nor a peer"):
            prepare(target, "mnt/store")
        with pytest.raises(NotFoundError, match="there is no job"):
            list(client.followed("0" * 16, target.socket))
        assert client.status(target.socket) == []


def test_the_socket_is_for_root_alone_and_goes_with_the_agent(target: Node) -> None:
    with nodes.agent(target) as process:
        status = os.stat(target.socket)
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, 0)
        assert stat.S_IMODE(os.stat(os.path.dirname(target.socket)).st_mode) == 0o700
        with pytest.raises(FailedPreconditionError, match=r"an agent listens .* already"):
            service.take_over(target.socket)
        process.terminate()
        assert process.wait(timeout=15) == 0
    assert not os.path.exists(target.socket)
    with pytest.raises(UnavailableError, match=r"is grit-agent\.service running here"):
        client.status(target.socket)


def test_a_dead_agent_s_socket_is_taken_over_and_a_stranger_s_is_not(tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    service.take_over(path)
    assert not os.path.exists(path)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(path)
    os.chown(path, 65534, 65534)
    with pytest.raises(FailedPreconditionError, match="a socket of user 65534, expected"):
        service.take_over(path)
    os.unlink(path)
    os.symlink("/etc/passwd", path)
    with pytest.raises(FailedPreconditionError, match="no socket of user 0"):
        service.take_over(path)


def port_of(peer: str) -> int:
    return int(peer.rpartition(":")[2])
