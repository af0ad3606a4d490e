"""The pod that a checkpoint is taken of, and the job that takes it: what undoing one ends."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from grit_runtime import log
from grit_runtime.errors import GritError, HeldError, UnavailableError, one_line
from grit_runtime.manager import cluster as kube
from grit_runtime.manager import fencing, pods
from grit_runtime.proto import agent_pb2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.manager.agents import Agent
    from grit_runtime.manager.cluster import Cluster, Object
    from grit_runtime.manager.world import World

_JOB_ENDS_S = 60.0  # CRIU is given 30 s to let go of a pod


async def let_run(world: World, namespace: str, name: str, now: Object) -> str:
    """Let a pod run on that is held for the checkpoint of that name, or is about to be, if it is
    still there. What has become of it, in words; "" if it goes on elsewhere, or nowhere.

    One that is ending, or whose node is lost and fenced, may go on elsewhere. UnavailableError
    while its node does not answer.
    """
    if not await is_there(world.cluster, namespace, now):
        return ""
    agent = await world.agents.at(now["nodeName"])
    await _end_job(agent, namespace, name)
    request = agent_pb2.ResumeRequest(
        target=f"{namespace}/{now['podName']}", uid=now["podUID"], checkpoint=name
    )
    with suppress(HeldError):  # for another checkpoint
        await agent.ask("Resume", request, agent_pb2.ResumeReply)
    return "the pod runs on"


async def is_there(cluster: Cluster, namespace: str, now: Object) -> bool:
    """Whether the pod can run on; not if it is ending, or its node is gone, or lost and fenced."""
    if not now.get("nodeName"):
        return False
    node = await cluster.find(kube.NODES, "", now["nodeName"])
    if node is None or (fencing.is_lost(node) and fencing.is_fenced(node)):
        return False
    return await pods.living(cluster, namespace, now["podName"], now["podUID"]) is not None


async def cancel(world: World, namespace: str, name: str, now: Object) -> None:
    """End the job that takes the checkpoint, if its node answers; what it has begun is undone."""
    try:
        await _end_job(await world.agents.at(now["nodeName"]), namespace, name)
    except GritError as error:
        log.warning("a job is not cancelled", node=now["nodeName"], reason=one_line(error))


async def _end_job(agent: Agent, namespace: str, name: str) -> None:
    """End the job that takes the checkpoint, if there is one, and wait until it has ended."""
    jobs = await agent.ask("Status", agent_pb2.StatusRequest(), agent_pb2.StatusReply)
    for job in jobs.jobs:
        if (job.namespace, job.name) == (namespace, name) and not job.ended:
            own = agent_pb2.JobRequest(id=job.id)
            await agent.ask("Cancel", own, agent_pb2.Job)
            try:
                async with asyncio.timeout(_JOB_ENDS_S):
                    async for _ in agent.stream("Follow", own, agent_pb2.Job):
                        pass
            except TimeoutError:
                raise UnavailableError(
                    f"node {agent.node}: job {job.id} has not ended {_JOB_ENDS_S:g} s after it was "
                    "cancelled; look at the agent's log"
                ) from None
