"""What a process of `helpers` does: it serves peers, or brings chunks of one."""

from __future__ import annotations

import json
import os
import select
import socket

from blake3 import blake3

from grit_runtime.agent import client, fetching
from grit_runtime.agent.identity import Identity
from grit_runtime.agent.peers import Address, PeerSource
from grit_runtime.agent.serving import Server
from grit_runtime.errors import GritError, one_line, reason
from grit_runtime.files import room
from grit_runtime.model.manifest import File
from grit_runtime.proto import agent_pb2, peer_pb2
from grit_runtime.store import receiving
from grit_runtime.store.catalog import Entry
from grit_runtime.store.receiving import Into, Wanted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any


def main(argument: str) -> None:
    """What such a process does."""
    asked = json.loads(argument)
    if asked["call"] == "serve":
        _serve(asked)
    else:
        _receive(asked)


def _serve(asked: dict[str, Any]) -> None:
    listening = socket.socket(fileno=0)
    with Server(asked["root"], Identity(asked["identity"]), listening, fetch=relayed):
        select.select([1], [], [])  # until nobody can write to it any more


def relayed(wanted: peer_pb2.Fetch, peer: str, host: str) -> Iterator[peer_pb2.Progress]:
    """Have this node's agent prepare a checkpoint of the *peer* that asks; how far that is."""
    request = agent_pb2.PrepareRequest(
        namespace=wanted.checkpoint.namespace,
        name=wanted.checkpoint.name,
        sha256=wanted.checkpoint.sha256,
        source=fetching.url_of(wanted, peer),
        host=host,
    )
    begun = client.asked("Prepare", request, agent_pb2.Job)
    return fetching.progress(client.followed(begun.id))


def _receive(asked: dict[str, Any]) -> None:
    try:
        fd = os.open(asked["directory"], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        into = Into(fd, asked["is_awaited"])
        address, entry = Address(**asked["peer"]), Entry(**asked["entry"])
        with (
            room.named_if_full(f"checkpoint {entry.namespace}/{entry.name}"),
            PeerSource(address, Identity(asked["identity"]), entry) as source,
            open(0) as orders,
        ):
            for order in orders:
                run = [
                    Wanted(File(path, size_bytes, ""), number, chunk_bytes, b"")
                    for path, size_bytes, number, chunk_bytes in json.loads(order)
                ]
                for received in source.receive(run):
                    data = receiving.write(into, received)
                    digest = blake3(data).hexdigest()
                    _say(digest=digest, moved_bytes=received.moved_bytes)
    except (GritError, OSError) as error:
        _say(reason=reason(error), text=one_line(error))


def _say(**answer: object) -> None:
    print(json.dumps(answer), flush=True)  # noqa: T201  to the agent
