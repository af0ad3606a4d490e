"""Makes the objects of kaito.sh that standard input has, in JSON, all at once."""

from __future__ import annotations

import asyncio
import json
import sys

from lightkube import AsyncClient
from lightkube.config.kubeconfig import KubeConfig

from grit_runtime.manager import cluster


async def main() -> None:
    async with AsyncClient(KubeConfig.from_env(), namespace="default") as client:
        kinds = cluster.OF_KIND
        made = json.load(sys.stdin)
        await asyncio.gather(*(client.create(kinds[one["kind"]](one)) for one in made))


if __name__ == "__main__":
    asyncio.run(main())
