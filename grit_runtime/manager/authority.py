"""The cluster's own CA: the webhooks' certificates, and those of the agents, are of it."""

from __future__ import annotations

import asyncio
import base64
import ssl
import tempfile
from contextlib import suppress
from datetime import UTC, datetime

from grit_runtime import certificates, log
from grit_runtime.errors import (
    AlreadyExistsError,
    GritError,
    NotFoundError,
    PermissionDeniedError,
    one_line,
)
from grit_runtime.manager import cluster as kube
from grit_runtime.manager import names, patience
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from grit_runtime.manager.cluster import Cluster, Object

CA, CA_KEY = names.CA_KEY, "ca.key"  # of the Secret; the ConfigMap has the first alone

_WEBHOOK_DAYS = 30
_AGENT_DAYS = 90
_LOOK_EVERY_S = 60.0
_AGAIN_S = 5.0
_POD_NAME = "authentication.kubernetes.io/pod-name"  # of whoever has a bound token


class Authority(NamedTuple):
    pem: bytes
    key_pem: bytes


async def ensured(cluster: Cluster, namespace: str) -> Authority:
    """The CA of the cluster, made now if there is none; one of several managers makes it."""
    found = await cluster.find(kube.SECRETS, namespace, names.CERTIFICATES)
    if found is None:
        pem, key_pem = certificates.new_ca("grit")
        data = {CA: _base64(pem), CA_KEY: _base64(key_pem)}
        try:
            found = await cluster.create(
                kube.SECRETS, _named("Secret", namespace, names.CERTIFICATES, data)
            )
        except AlreadyExistsError:
            found = await cluster.get(kube.SECRETS, namespace, names.CERTIFICATES)
    authority = Authority(*(base64.b64decode(found["data"][key]) for key in (CA, CA_KEY)))
    told = {CA: authority.pem.decode()}
    known = await cluster.find(kube.CONFIG_MAPS, namespace, names.CA_CONFIG_MAP)
    if known is None:
        with suppress(AlreadyExistsError):
            await cluster.create(
                kube.CONFIG_MAPS, _named("ConfigMap", namespace, names.CA_CONFIG_MAP, told)
            )
    elif known.get("data") != told:  # of a CA that is no more
        await cluster.replace(kube.CONFIG_MAPS, {**known, "data": told})
    return authority


class Serving:
    """The webhooks' certificate, in a TLS context that is given a new one before it ends."""

    def __init__(self, authority: Authority, names: tuple[str, ...]) -> None:
        self._authority = authority
        self._names = names
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2  # API servers before 1.23 need it
        self._renew_at = datetime.now(UTC)
        self.renew()

    def renew(self) -> None:
        """Load a new certificate if two thirds of the old one's life are over."""
        if datetime.now(UTC) < self._renew_at:
            return
        pem, key_pem = certificates.new_signed(
            self._names, self._authority.pem, self._authority.key_pem, _WEBHOOK_DAYS
        )
        with tempfile.NamedTemporaryFile() as file:  # ssl takes files only
            file.write(pem + key_pem)
            file.flush()
            self.context.load_cert_chain(file.name)
        self._renew_at = certificates.renew_at(pem)

    async def keep(self) -> None:
        """Renew it whenever it is time."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            self.renew()


async def keep_bundles(cluster: Cluster, authority: Authority) -> None:
    """Have the webhook configurations trust the CA, also when they are applied anew."""
    bundle = _base64(authority.pem)
    while True:
        for kind in (kube.MUTATING, kube.VALIDATING):
            found = await cluster.find(kind, "", names.MANAGER)
            hooks = (found or {}).get("webhooks") or []
            if any(hook["clientConfig"].get("caBundle") != bundle for hook in hooks):
                for hook in hooks:
                    hook["clientConfig"]["caBundle"] = bundle
                await cluster.patch(kind, "", names.MANAGER, {"webhooks": hooks})
                log.info("webhooks are trusted", kind=kind.__name__)
        await asyncio.sleep(_LOOK_EVERY_S)


async def sign_agents(cluster: Cluster, authority: Authority, namespace: str) -> None:
    """Sign what agents ask for, each for its own node and nobody else."""

    async def work(request: Object) -> None:
        name = request["metadata"]["name"]
        while True:
            try:
                await _sign(cluster, authority, namespace, name)
            except NotFoundError:
                return
            except GritError as error:  # nobody has looked at it, so it is not denied
                log.warning("a request is looked at again", request=name, reason=one_line(error))
                await asyncio.sleep(_AGAIN_S)
            else:
                return

    await patience.for_each(cluster.watched(kube.REQUESTS, ""), _is_open, work)


async def _sign(cluster: Cluster, authority: Authority, namespace: str, name: str) -> None:
    request = await cluster.get(kube.REQUESTS, "", name)
    if not _is_open(request):
        return
    (pod_name,) = (request["spec"].get("extra") or {}).get(_POD_NAME) or ("",)
    pod = await cluster.find(kube.PODS, namespace, pod_name) if pod_name else None
    is_approved = "Approved" in _conditions(request)
    try:
        node, public_key = _asked(request["spec"], namespace, pod_name, pod)
    except GritError as error:
        log.warning("a certificate is refused", request=name, reason=one_line(error))
        # What is approved, by whomever, cannot be denied.
        _add(request, "Failed" if is_approved else "Denied", one_line(error))
        await (cluster.certify if is_approved else cluster.approve)(request)
        return
    if not is_approved:
        _add(request, "Approved", f"it is the agent of node {node}")
        await cluster.approve(request)
        request = await cluster.get(kube.REQUESTS, "", name)
    pem = certificates.sign(public_key, (node,), authority.pem, authority.key_pem, _AGENT_DAYS)
    request["status"]["certificate"] = _base64(pem)
    await cluster.certify(request)


def _asked(spec: Object, namespace: str, pod_name: str, pod: Object | None) -> tuple[str, Any]:
    """The node and the key that are asked for. PermissionDeniedError for whoever may not."""
    account = f"system:serviceaccount:{namespace}:{names.AGENT}"
    if spec.get("username") != account:
        raise PermissionDeniedError(f"asked for by {spec.get('username')!r}, expected {account}")
    asked, public_key = certificates.requested(base64.b64decode(spec["request"]))
    node = pod["spec"].get("nodeName") if pod else None
    if node is None or asked != (node,):
        raise PermissionDeniedError(
            f"asked for names {', '.join(asked) or 'none'} by pod {pod_name or 'none'}, which is "
            f"on node {node or 'none'}: expected that name alone"
        )
    return node, public_key


def _add(request: Object, kind: str, message: str) -> None:
    condition = {"type": kind, "status": "True", "reason": "GritManager", "message": message}
    status = request.setdefault("status", {})
    status["conditions"] = [*(status.get("conditions") or ()), condition]


def _conditions(request: Object) -> set[str]:
    return {one["type"] for one in (request.get("status") or {}).get("conditions") or ()}


def _is_open(request: Object) -> bool:
    """Whether it is for us, and waits: approved and not signed is what a killed manager leaves."""
    is_signed = bool((request.get("status") or {}).get("certificate"))
    is_ours = bool(request["spec"].get("signerName") == names.SIGNER)
    return is_ours and not is_signed and not _conditions(request) & {"Denied", "Failed"}


def _named(kind: str, namespace: str, name: str, data: dict[str, str]) -> Object:
    meta = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": kind, "metadata": meta, "data": data}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
