"""The nodes of the cluster: what their agents say of them, and which can restore a checkpoint."""

from __future__ import annotations

import asyncio
import json
import time

from grit_runtime import log
from grit_runtime.errors import GritError, InvalidArgumentError, NoNodeError, one_line
from grit_runtime.manager import cluster as kube
from grit_runtime.manager import placement
from grit_runtime.model import compatibility
from grit_runtime.proto import agent_pb2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from grit_runtime.manager.agents import Agent, Agents
    from grit_runtime.manager.cluster import Cluster, Object
    from grit_runtime.manager.placement import Node
    from grit_runtime.model.compatibility import Facts

FACTS = "manager.grit.dev/facts"  # an annotation of a node
LABELS = ("grit.dev/criu", "grit.dev/driver", "grit.dev/gpu-model")

_ASK_EVERY_S = 240.0  # a watch is renewed as often, more or less
_AT_ONCE = 20  # agents that are asked
_VALUE_LIMIT = 63
_TOLD_LIMIT = 1000


class Nodes:
    """What is known of the nodes; `watch` keeps it."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._known: list[Node] = []
        self._listed = asyncio.Event()

    async def watch(self) -> None:
        """Read what is said and noted of nodes, now and whenever it changes."""
        async for nodes in self._cluster.watched(kube.NODES, ""):
            self._known = [placement.node(body, _noted(body)) for body in nodes.values()]
            self._listed.set()

    async def listed(self) -> None:
        """Wait until the nodes are known: nobody can go anywhere before."""
        await self._listed.wait()

    def that_can(
        self, pod_spec: Object, needs: dict[str, Any], *, only: str = "", without: str = ""
    ) -> list[str]:
        """The nodes that the pod could go on at from a checkpoint with these *needs*.

        *only* the node of that name is looked at, if one is named, and never the one it has to do
        *without*. NoNodeError if there is none, with what each lacks.
        """
        wanted = compatibility.parse_facts(json.dumps(needs).encode(), "needs")
        refusals = {
            node.name: placement.refusals(node, pod_spec, wanted)
            for node in self._known
            if node.name != without and only in ("", node.name)
        }
        if names := sorted(name for name, reasons in refusals.items() if not reasons):
            return names
        told = "; ".join(f"{name}: {reasons[0]}" for name, reasons in refusals.items())
        raise NoNodeError(f"no node can take the pod: {told[:_TOLD_LIMIT] or 'none is known'}")


async def keep_noted(agents: Agents, cluster: Cluster) -> None:
    """Ask agents about their nodes as soon as they are there, and now and then; note it there."""
    asked_s: dict[str, float] = {}
    slots = asyncio.Semaphore(_AT_ONCE)

    async def ask(uid: str, agent: Agent) -> None:
        try:
            async with slots:
                reply = await agent.ask("Facts", agent_pb2.FactsRequest(), agent_pb2.FactsReply)
                await _note(cluster, agent.node, reply.facts)
        except GritError as error:
            log.warning("facts are not known", node=agent.node, reason=one_line(error))
            asked_s.pop(uid, None)

    async with asyncio.TaskGroup() as tasks:
        async for nodes in agents.watched():  # which must not wait for an agent
            asked_s = {uid: moment for uid, moment in asked_s.items() if uid in nodes}
            for uid, agent in nodes.items():
                if time.monotonic() - asked_s.get(uid, -_ASK_EVERY_S) >= _ASK_EVERY_S:
                    asked_s[uid] = time.monotonic()
                    tasks.create_task(ask(uid, agent))


async def _note(cluster: Cluster, name: str, facts: str) -> None:
    read = compatibility.parse_facts(facts.encode(), f"facts of node {name}")
    model = read.gpus[0].model if read.gpus else None
    values = (read.node.criu, read.node.driver or None, model)
    compact = json.dumps(json.loads(facts), separators=(",", ":"))
    node = await cluster.get(kube.NODES, "", name)
    labels = {key: _value(value) for key, value in zip(LABELS, values, strict=True)}
    there = node["metadata"].get("labels") or {}
    if _noted_text(node) != compact or any(there.get(k) != v for k, v in labels.items()):
        patch = {"metadata": {"labels": labels, "annotations": {FACTS: compact}}}
        await cluster.patch(kube.NODES, "", name, patch)


def _value(text: str | None) -> str | None:
    """*text* as a label's value."""
    if text is None:
        return None
    kept = "".join(one if one.isalnum() or one in "-_." else "-" for one in text)
    return kept[:_VALUE_LIMIT].strip("-_.")


def _noted(node: Object) -> Facts | None:
    text = _noted_text(node)
    try:
        return compatibility.parse_facts(text.encode(), FACTS) if text else None
    except InvalidArgumentError as error:
        log.warning("a node's facts mean nothing", node=node["metadata"]["name"], reason=error)
        return None


def _noted_text(node: Object) -> str:
    return str((node["metadata"].get("annotations") or {}).get(FACTS, ""))
