"""Makes the objects of kaito.sh that standard input has, in JSON, many at once."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from lightkube import AsyncClient
from lightkube.config.kubeconfig import KubeConfig

from grit_runtime.manager.cluster import OF_KIND, Cluster

AT_ONCE = 32


async def main() -> None:
    async with AsyncClient(KubeConfig.from_env(), namespace="default") as client:
        slots = asyncio.Semaphore(AT_ONCE)

        async def make(one: dict[str, Any]) -> None:
            async with slots:
                await Cluster(client).create(OF_KIND[one["kind"]], one)

        await asyncio.gather(*map(make, json.load(sys.stdin)))


if __name__ == "__main__":
    asyncio.run(main())
