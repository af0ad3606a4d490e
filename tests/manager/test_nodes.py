"""What is known of nodes, and from when on."""

from __future__ import annotations

import asyncio

import pytest

from grit_runtime.manager.nodes import Nodes
from tests.manager import api_server


def test_nodes_are_known_once_they_are_listed() -> None:
    async def look() -> None:
        async with api_server.serving() as (server, cluster):
            server.put("nodes", {"metadata": {"name": "node-a"}, "spec": {}, "status": {}})
            nodes = Nodes(cluster)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await nodes.listed()
            watching = asyncio.ensure_future(nodes.watch())
            await asyncio.wait_for(nodes.listed(), 5)
            assert [node.name for node in nodes._known] == ["node-a"]
            watching.cancel()

    asyncio.run(look())
