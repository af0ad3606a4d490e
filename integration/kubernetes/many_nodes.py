"""Nodes and pods that this machine has no room for, beside a control plane.

What is imitated: kubelets' word that nodes and pods are there, and their agents (many_agents.py).
Nothing runs. What is real is the API server, the scheduler and the manager: they are measured.

usage: python many_nodes.py NODES

Makes so many nodes; then reads lines. After "Checkpoint COUNT" or "Migration COUNT" it makes that
many pods, and one object of that kind for each, all at once; a line of JSON says when each was
made, when an agent was asked for it, and how it has ended, if it has. After "Review COUNT" it says
how long so many reviews of new pods took.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import aiohttp
import grpc
from lightkube import AsyncClient

from grit_runtime import certificates
from grit_runtime.manager import api, authority, names, nodes, pods
from grit_runtime.manager import cluster as kube
from grit_runtime.manager.cluster import Cluster
from integration.kubernetes.many_agents import CONTAINER, Agent

NAMESPACE = "default"
QUIET = "kube-public"  # no object of grit's is there
IMAGE = "stands-for-a-program"
RENEW_EVERY_S = 10.0
ENDED = {"Checkpoint": (api.CHECKPOINTED, api.FAILED), "Migration": (api.SUCCEEDED, api.FAILED)}
AT_ONCE = 50  # requests of ours
GIVE_UP_S = 180.0

_READY = {"type": "Ready", "status": "True", "reason": "Imitated", "message": "no kubelet is here"}


class Fleet:
    """The nodes, and what is made on them."""

    def __init__(self, cluster: Cluster, count: int) -> None:
        self._cluster = cluster
        self._addresses = {f"many-{n:03}": f"127.1.0.{n + 1}" for n in range(count)}
        self._asked: dict[str, float] = {}
        self._runs = itertools.count()
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def begin(self) -> None:
        """Have the nodes be there, until the manager knows what they are."""
        ca = await authority.ensured(self._cluster, names.NAMESPACE)
        pem, key_pem = certificates.new_signed(tuple(self._addresses), ca.pem, ca.key_pem, 1)
        credentials = grpc.ssl_server_credentials([(key_pem, pem)])
        self._servers = []
        for node, address in self._addresses.items():
            server = grpc.aio.server()
            server.add_generic_rpc_handlers((Agent(node, self._asked).handlers(),))
            server.add_secure_port(f"{address}:{names.AGENT_API_PORT}", credentials)
            await server.start()
            self._servers.append(server)
        await asyncio.gather(*(self._node(*one) for one in self._addresses.items()))
        self._renewing = asyncio.create_task(self._renew())
        async for found in self._cluster.watched(kube.NODES, ""):
            if all(_is_usable(node) for node in found.values()):
                return

    async def end(self) -> None:
        self._renewing.cancel()
        await asyncio.gather(*(server.stop(None) for server in self._servers))

    async def _node(self, name: str, address: str) -> None:
        meta = {"name": name, "labels": {"grit.dev/runtime": "true"}}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": meta}
        await self._cluster.create(kube.NODES, node)
        amounts = {"cpu": "1000", "memory": "1000Gi", "pods": "1000"}
        told = {"conditions": [_READY], "capacity": amounts, "allocatable": amounts}
        await self._cluster.patch(kube.NODES, "", name, {"status": told}, status=True)
        lease = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name, "namespace": "kube-node-lease"},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": _now()},
        }
        await self._cluster.create(kube.LEASES, lease)
        agent = _pod(f"agent-{name}", names.NAMESPACE, name)
        agent["metadata"]["labels"] = {"app.kubernetes.io/name": names.AGENT}
        await self._run_pod(agent, address)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY_S)
            renewed = {"spec": {"renewTime": _now()}}
            for name in self._addresses:
                await self._cluster.patch(kube.LEASES, "kube-node-lease", name, renewed)

    async def _run_pod(self, pod: dict[str, Any], address: str = "") -> None:
        meta = pod["metadata"]
        await self._cluster.create(kube.PODS, pod)
        told = {
            "phase": "Running",
            "conditions": [_READY],
            **({"podIP": address} if address else {}),
        }
        await self._cluster.patch(
            kube.PODS, meta["namespace"], meta["name"], {"status": told}, status=True
        )

    async def work(self, kind: str, count: int) -> dict[str, Any]:
        """Make pods and an object for each, and wait until all of these have ended."""
        run = next(self._runs)
        made = [f"run-{run}-{number}" for number in range(count)]
        places = zip(made, itertools.cycle(self._addresses))
        await asyncio.gather(*(self._pod(name, node) for name, node in places))
        resource = kube.OF_KIND[kind]
        begun = {}

        async def make(name: str) -> None:
            meta = {"name": name, "namespace": NAMESPACE}
            spec = {"podName": name}
            wanted = {"apiVersion": api.API_VERSION, "kind": kind, "metadata": meta, "spec": spec}
            async with self._slots:
                await self._cluster.create(resource, wanted)
            begun[name] = time.time()

        ended: dict[str, tuple[str, str]] = {}
        with suppress(TimeoutError):
            async with asyncio.timeout(GIVE_UP_S):
                making = asyncio.gather(*(make(name) for name in made))
                await self._ended(resource, made, ENDED[kind], ended)
                await making
        asked = {name: self._asked[name] for name in made if name in self._asked}
        return {"made": begun, "asked": asked, "ended": ended}

    async def _ended(
        self,
        resource: Any,
        made: list[str],
        phases: tuple[str, ...],
        ended: dict[str, tuple[str, str]],
    ) -> None:
        """Wait until all that was *made* is in one of *phases*; note in *ended* which, and why."""
        async for found in self._cluster.watched(resource, NAMESPACE):
            for name in made:
                now = found.get(name, {}).get("status") or {}
                if name not in ended and now.get("phase") in phases:
                    ended[name] = now["phase"], now.get("message", "")
            if len(ended) == len(made):
                return

    async def _pod(self, name: str, node: str) -> None:
        async with self._slots:
            await self._run_pod(_pod(name, NAMESPACE, node))

    async def review(self, count: int) -> dict[str, Any]:
        """Seconds of the manager's answers about new pods that an owner makes."""
        ca = await authority.ensured(self._cluster, names.NAMESPACE)
        context = ssl.create_default_context(cadata=ca.pem.decode())
        pod = _pod("new", QUIET, "")
        owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "new", "uid": "none"}
        pod["metadata"]["ownerReferences"] = [{**owner, "controller": True}]
        request = {"uid": "review", "namespace": QUIET, "object": pod, "dryRun": False}
        url = f"https://127.0.0.1:{names.WEBHOOK_PORT}{names.POD_PATH}"
        host = f"{names.MANAGER}.{names.NAMESPACE}.svc"
        taken_s = []
        async with aiohttp.ClientSession() as session:
            for _ in range(count):
                begin = time.perf_counter()
                async with session.post(
                    url, json={"request": request}, ssl=context, server_hostname=host
                ) as answer:
                    assert (await answer.json())["response"]["allowed"]
                taken_s.append(time.perf_counter() - begin)
        return {"taken_s": taken_s}


def _pod(name: str, namespace: str, node: str) -> dict[str, Any]:
    is_agent = namespace == names.NAMESPACE
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            **({} if is_agent else {"runtimeClassName": pods.RUNTIME_CLASS}),
            **({"nodeName": node} if node else {}),
            "containers": [{"name": CONTAINER, "image": IMAGE}],
        },
    }


def _is_usable(node: dict[str, Any]) -> bool:
    is_known = nodes.FACTS in (node["metadata"].get("annotations") or {})
    return is_known and not node["spec"].get("taints")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def main() -> None:
    async with AsyncClient() as client:
        fleet = Fleet(Cluster(client), int(sys.argv[1]))
        await fleet.begin()
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            what, count = line.split()
            done = fleet.review(int(count)) if what == "Review" else fleet.work(what, int(count))
            print(json.dumps(await done), flush=True)
        await fleet.end()


if __name__ == "__main__":
    asyncio.run(main())
