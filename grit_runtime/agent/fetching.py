"""What a peer has asked this node to fetch of it, as a job, and what the peer hears of that."""

from __future__ import annotations

from grit_runtime.agent import job
from grit_runtime.agent.peers import SCHEME
from grit_runtime.errors import GritError, InvalidArgumentError, of_reason
from grit_runtime.proto import agent_pb2, peer_pb2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from grit_runtime.agent.job import Job


def url_of(wanted: peer_pb2.Fetch, peer: str) -> str:
    """Where the *peer* that asks is read; InvalidArgumentError for a port that is none."""
    if not 0 < wanted.port < 1 << 16:
        raise InvalidArgumentError(f"port {wanted.port} of peer {peer} means nothing")
    return f"{SCHEME}{peer}:{wanted.port}"


def progress(states: Iterable[Job | agent_pb2.Job]) -> Iterator[peer_pb2.Progress]:
    """How far the job is with each of its *states*. Its error, if it has not gone well."""
    for now in states:
        if now.state in {job.FAILED, job.CANCELLED}:
            kind = of_reason(now.reason) if now.reason else GritError
            raise kind(now.text or f"job {now.id} was cancelled there")
        yield peer_pb2.Progress(
            done_bytes=now.done_bytes,
            size_bytes=now.size_bytes,
            moved_bytes=now.moved_bytes,
            is_done=now.state == job.DONE,
        )
