"""The agents' certificates: who gets one, and what a moment's failure means."""

from __future__ import annotations

import asyncio
import base64
from contextlib import asynccontextmanager
from typing import Any

import pytest
from cryptography import x509

from grit_runtime import certificates
from grit_runtime.agent import enrolment
from grit_runtime.manager import authority, names
from tests.manager import api_server
from tests.manager.api_server import Refusal, Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

NAMESPACE = "grit-system"
PEM, KEY = certificates.new_ca("grit")


def request(node: str = "node-a", *conditions: str) -> dict[str, Any]:
    """What the agent on node-a asks, for a *node*."""
    asked = enrolment._request(certificates.new_key(), node)
    spec = {
        "signerName": names.SIGNER,
        "username": f"system:serviceaccount:{NAMESPACE}:{names.AGENT}",
        "extra": {"authentication.kubernetes.io/pod-name": ["agent-a"]},
        "request": base64.b64encode(asked).decode(),
        "usages": ["server auth"],
    }
    status = {"conditions": [{"type": one, "status": "True"} for one in conditions]}
    return {"metadata": {"name": "csr-a"}, "spec": spec, "status": status}


@asynccontextmanager
async def signing(node: str = "node-a") -> AsyncIterator[Server]:
    async with api_server.serving() as (server, cluster):
        agent = {"metadata": {"name": "agent-a", "namespace": NAMESPACE}}
        server.put("pods", {**agent, "spec": {"nodeName": node}})
        own = authority.Authority(PEM, KEY)
        task = asyncio.ensure_future(authority.sign_agents(cluster, own, NAMESPACE))
        try:
            yield server
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(is_so: Callable[[dict[str, Any]], object], server: Server) -> dict[str, Any]:
    """The request's status then."""
    async with asyncio.timeout(10):
        while True:
            (found,) = server.of("certificatesigningrequests")
            if is_so(found["status"]):
                return dict(found["status"])
            await asyncio.sleep(0.02)


def is_signed(status: dict[str, Any]) -> bool:
    return "certificate" in status


def kinds(status: dict[str, Any]) -> list[str]:
    return [one["type"] for one in status.get("conditions") or ()]


@pytest.mark.parametrize("conditions", [(), ("Approved",)])
def test_one_that_is_approved_and_not_signed_is_signed(conditions: tuple[str, ...]) -> None:
    async def sign() -> None:
        async with signing() as server:
            server.put("certificatesigningrequests", request("node-a", *conditions))
            status = await until(is_signed, server)
            assert kinds(status) == ["Approved"]
            signed = x509.load_pem_x509_certificate(base64.b64decode(status["certificate"]))
            assert signed.issuer == x509.load_pem_x509_certificate(PEM).subject

    asyncio.run(sign())


@pytest.mark.parametrize("node", ["node-a", "10.0.0.5"])
def test_what_is_signed_is_of_the_node_as_its_agent_and_its_peers_see_it(node: str) -> None:
    async def sign() -> None:
        async with signing(node) as server:
            server.put("certificatesigningrequests", request(node))
            status = await until(is_signed, server)
            signed = x509.load_pem_x509_certificate(base64.b64decode(status["certificate"]))
            assert enrolment._is_for(signed, node)
            assert not enrolment._is_for(signed, "10.0.0.6")

    asyncio.run(sign())


@pytest.mark.parametrize(("approved", "kind"), [((), "Denied"), (("Approved",), "Failed")])
def test_one_for_another_node_is_refused(approved: tuple[str, ...], kind: str) -> None:
    async def sign() -> None:
        async with signing() as server:
            server.put("certificatesigningrequests", request("node-b", *approved))
            status = await until(lambda now: kind in kinds(now), server)
            assert kinds(status) == [*approved, kind]
            assert not is_signed(status)

    asyncio.run(sign())


def test_one_that_could_not_be_looked_at_for_a_moment_is_not_denied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(authority, "_AGAIN_S", 0.1)

    async def sign() -> None:
        async with signing() as server:
            server.refused["GET", "pods"] = Refusal(401, "Unauthorized")
            server.put("certificatesigningrequests", request())
            await asyncio.sleep(0.5)
            assert kinds(server.of("certificatesigningrequests")[0]["status"]) == []
            server.refused.clear()
            assert kinds(await until(is_signed, server)) == ["Approved"]

    asyncio.run(sign())
