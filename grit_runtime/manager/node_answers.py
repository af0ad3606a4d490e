"""What becomes of nodes, and what is done about it: each notice and each loss by its own task.

A notice is answered for as long as pods move; the node may be lost, and fenced, meanwhile.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from grit_runtime import log
from grit_runtime.errors import GritError, one_line
from grit_runtime.manager import cluster as kube
from grit_runtime.manager import fencing, lost_nodes, notices, patience, pods
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from grit_runtime.manager.cluster import Cluster, Object
    from grit_runtime.manager.world import World

_AGAIN_S = 30.0


class Case(NamedTuple):
    """What is answered."""

    node: str
    what: Literal["notice", "lost", "gone"]
    how: str = ""  # when it is another, it is answered anew


async def keep(world: World) -> None:
    """Answer whatever becomes of a node, for as long as it is so."""
    done: set[str] = set()  # of those that are gone

    async def work(case: Case) -> None:
        told: set[str] = set()
        while True:
            try:
                if await _is_done(world, case, told):
                    done.add(case.node)
                    return
            except GritError as error:
                why = one_line(error)
                log.warning("a node is not answered", node=case.node, what=case.what, reason=why)
            await asyncio.sleep(_AGAIN_S)

    await patience.for_each(_cases(world.cluster, done), lambda _: True, work)


async def _is_done(world: World, case: Case, told: set[str]) -> bool:
    """Answer it. Whether it needs no other look: what is told of a node may come again."""
    if case.what == "notice":
        await notices.answer(world.cluster, case.node)
        return False
    return await lost_nodes.answer(world, case.node, told) and case.what == "gone"


async def _cases(cluster: Cluster, done: set[str]) -> AsyncIterator[dict[Case, Case]]:
    seen: dict[str, tuple[Object, list[Case]]] = {}
    gone: set[str] | None = None
    async for nodes in cluster.watched(kube.NODES, ""):
        if gone is None:  # they may have been deleted while nobody led
            gone = await _with_pods(cluster)
        gone = (gone | seen.keys()) - nodes.keys() - done
        done.clear()
        seen = {
            name: known if (known := seen.get(name)) and known[0] is body else (body, _of(body))
            for name, body in nodes.items()
        }
        found = [case for _, cases in seen.values() for case in cases]
        yield {case: case for case in (*found, *(Case(name, "gone") for name in gone))}


async def _with_pods(cluster: Cluster) -> set[str]:
    """The nodes that pods of grit's are on, as far as the API server knows."""
    return {
        pod["spec"]["nodeName"]
        for pod in await cluster.every(kube.PODS)
        if pod["spec"].get("runtimeClassName") == pods.RUNTIME_CLASS and "nodeName" in pod["spec"]
    }


def _of(node: Object) -> list[Case]:
    name = node["metadata"]["name"]
    cases = []
    if notices.is_open(node):
        told = notices.notice(node, 0.0)
        cases.append(Case(name, "notice", told.trigger if told else ""))
    if fencing.is_lost(node):
        cases.append(Case(name, "lost", "fenced" if fencing.is_fenced(node) else ""))
    return cases
