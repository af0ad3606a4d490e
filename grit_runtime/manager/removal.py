"""The data of a Checkpoint that goes, on its node and in its store."""

from __future__ import annotations

import asyncio

from grit_runtime.errors import DeadlineExceededError, UnavailableError
from grit_runtime.manager import carriers, fencing, patience, pods
from grit_runtime.manager import cluster as kube
from grit_runtime.manager.status import Status
from grit_runtime.proto import agent_pb2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.manager.agents import Agent
    from grit_runtime.manager.api import Checkpoint
    from grit_runtime.manager.cluster import Object
    from grit_runtime.manager.world import World

_AGENT_S = 20.0  # until one that is started anew, as at an upgrade, is ready
_TRY_S = 120.0


async def remove(world: World, checkpoint: Checkpoint, found: Object) -> None:
    """Remove it from its node, and from its store, which any agent reaches if that node is gone.

    Tried again while something is in the way: nobody looks at what is left there, and the next
    Checkpoint of the name meets it. What was in the way for too long is raised.
    """
    meta, now = checkpoint.metadata, checkpoint.status
    is_stored = bool(now.manifest_digest and checkpoint.spec.stored)
    agent = await _agent(world, now.node_name, is_stored=is_stored)
    request = agent_pb2.RemoveRequest(namespace=meta.namespace, name=meta.name)
    if is_stored:
        status = Status(world.cluster, kube.CHECKPOINTS, found)
        request.sha256 = now.manifest_digest.removeprefix("sha256:")
        request.store = await carriers.store_of(world, checkpoint, agent.node, status)

    async def ask() -> None:
        pod = now.pod_name, now.pod_uid
        if not await pods.living(world.cluster, meta.namespace, *pod):
            request.deleted_pod_uid = now.pod_uid
        ready = await world.agents.at(agent.node)  # it may have another address by now
        await ready.ask("Remove", request, agent_pb2.RemoveReply)

    try:
        async with asyncio.timeout(_TRY_S):
            await patience.repeated(lambda: patience.while_busy(ask))
    except TimeoutError:
        raise DeadlineExceededError(
            f"node {agent.node} has not removed it for {_TRY_S:g} s; look at its agent"
        ) from None
    finally:
        await carriers.closed(world.cluster, meta.namespace, meta.uid)


async def _agent(world: World, node: str, *, is_stored: bool) -> Agent:
    try:
        return await _own_agent(world, node)
    except UnavailableError:
        if not is_stored:
            raise
        return await world.agents.any()


async def _own_agent(world: World, name: str) -> Agent:
    """The agent of the node, if it is ready, or soon is on a node that is not lost."""
    node = await world.cluster.find(kube.NODES, "", name)
    if node is not None and not fencing.is_lost(node):
        try:
            async with asyncio.timeout(_AGENT_S):
                return await patience.repeated(lambda: world.agents.at(name))
        except TimeoutError:
            pass  # the error says what there is none of
    return await world.agents.at(name)
