"""Kubernetes' API. Objects are dicts, as the server has them: nothing that it knows is lost.

Every call is repeated for a while if the server does not answer or is busy; a create that is
repeated may find its own object, as any other that is there already.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager, suppress

import httpx2 as httpx
from lightkube import ApiError, AsyncClient
from lightkube.config import client_adapter
from lightkube.config.kubeconfig import KubeConfig
from lightkube.generic_resource import create_global_resource, create_namespaced_resource
from lightkube.resources.certificates_v1 import CertificateSigningRequest
from lightkube.types import PatchType

from grit_runtime import log
from grit_runtime.errors import (
    AlreadyExistsError,
    ConflictError,
    GritError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
    of_reason,
    one_line,
)
from grit_runtime.manager.following import Change, Following

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import Any, TypeVar

    from lightkube.config.kubeconfig import SingleConfig

    Object = dict[str, Any]
    Kind = Any  # a class of lightkube's
    Answer = TypeVar("Answer")

GROUP, VERSION = "kaito.sh", "v1alpha1"

CHECKPOINTS = create_namespaced_resource(GROUP, VERSION, "Checkpoint", "checkpoints")
RESTORES = create_namespaced_resource(GROUP, VERSION, "Restore", "restores")
MIGRATIONS = create_namespaced_resource(GROUP, VERSION, "Migration", "migrations")
SCHEDULES = create_namespaced_resource(GROUP, VERSION, "CheckpointSchedule", "checkpointschedules")
OF_KIND = {"Checkpoint": CHECKPOINTS, "Restore": RESTORES, "Migration": MIGRATIONS}
PODS = create_namespaced_resource("", "v1", "Pod", "pods")
CLAIMS = create_namespaced_resource("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims")
CONFIG_MAPS = create_namespaced_resource("", "v1", "ConfigMap", "configmaps")
EVENTS = create_namespaced_resource("", "v1", "Event", "events")
SECRETS = create_namespaced_resource("", "v1", "Secret", "secrets")
LEASES = create_namespaced_resource("coordination.k8s.io", "v1", "Lease", "leases")
NODES = create_global_resource("", "v1", "Node", "nodes")
VOLUMES = create_global_resource("", "v1", "PersistentVolume", "persistentvolumes")
EVICTIONS = create_namespaced_resource("lifecycle.k8s.io", "v1alpha1", "Eviction", "evictions")
REQUESTS = create_global_resource(
    "certificates.k8s.io", "v1", "CertificateSigningRequest", "certificatesigningrequests"
)
REVIEWS = create_global_resource(
    "authorization.k8s.io", "v1", "SubjectAccessReview", "subjectaccessreviews"
)
MUTATING, VALIDATING = (
    create_global_resource("admissionregistration.k8s.io", "v1", kind, f"{kind.lower()}s")
    for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration")
)

_PATIENCE_S = 90.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_BUSY = (429, 500, 502, 503, 504)
_NO_PAGE = 404  # without a Status: no such kind is served
WATCH_S = 60  # the server ends a watch then, and it goes on from where it was
SILENT_S = WATCH_S + 30.0  # one that has not even ended is dead, without anybody's saying so
_RENEWED_S = 2.0  # after one that was refused or lost
_NOTHING = "metadata.name=-"  # no object has this name
_CONNECTIONS = 20  # for all but watches
_TIMEOUT_S = 10.0  # without a byte


@asynccontextmanager
async def connected() -> AsyncIterator[Cluster]:
    """The cluster that this process is in, or whose kubeconfig it has.

    Watches are apart, as each has a connection for itself, for as long as it lasts. All else goes
    over a few: httpx looks at all of them before each request.
    """
    config: Any = KubeConfig.from_env().get()
    async with reached(config) as cluster:
        yield cluster


@asynccontextmanager
async def reached(config: SingleConfig) -> AsyncIterator[Cluster]:
    """The cluster of a context of a kubeconfig."""
    asking = _client(config, httpx.AsyncHTTPTransport, _CONNECTIONS)
    watching = _client(config, _Watching, None)
    async with asking, watching:
        yield Cluster(asking, watching)


def _client(
    config: Any, transport: type[httpx.AsyncHTTPTransport], connections: int | None
) -> AsyncClient:
    verify = client_adapter.verify_cluster(config.cluster, config.user, config.abs_file)
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=_CONNECTIONS)
    return AsyncClient(
        config,
        timeout=httpx.Timeout(_TIMEOUT_S, pool=None),
        transport=transport(verify=verify, limits=limits),
    )


class _Watching(httpx.AsyncHTTPTransport):
    """For watches, which lightkube lets be silent forever, as one is whose server or balancer went
    without a word. Bookmarks tell from where to go on, so that hardly anything is listed anew."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions["timeout"]["read"] = SILENT_S
        request.url = request.url.copy_add_param("allowWatchBookmarks", "true")
        return await super().handle_async_request(request)


class Cluster:
    """The API server, by clients of lightkube's: one for watches, which may be the other's too."""

    def __init__(self, client: AsyncClient, watching: AsyncClient | None = None) -> None:
        self._client = client
        self._watching = watching or client
        self._slots = asyncio.Semaphore(_CONNECTIONS)  # its waiting costs httpx nothing
        self._following: dict[tuple[Kind, str], Following] = {}

    async def find(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """The object, or None if there is none."""
        with suppress(NotFoundError):
            return await self.get(kind, namespace, name)
        return None

    async def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """The object. NotFoundError if there is none."""
        place = _place(namespace)
        return dict(await self._answered(lambda: self._client.get(kind, name, **place)))

    async def every(
        self, kind: Kind, namespace: str = "*", *, labels: str = "", fields: str = ""
    ) -> list[Object]:
        """All objects of the namespace, or of all namespaces, that the selectors select."""
        return (await self._listed(kind, namespace, labels, fields))[0]

    async def create(self, kind: Kind, made: Object, *, dry_run: bool = False) -> Object:
        """The object as it is then. AlreadyExistsError if one has its name."""
        place = _place(made["metadata"].get("namespace", ""))
        return dict(
            await self._answered(lambda: self._client.create(kind(made), dry_run=dry_run, **place))
        )

    async def patch(
        self, kind: Kind, namespace: str, name: str, patch: Object, *, status: bool = False
    ) -> Object:
        """Merge *patch* into the object, or into its status.

        ConflictError if the patch names a uid or a resource version that it does not have.
        """
        target = kind.Status if status else kind
        place = _place(namespace)
        return dict(
            await self._answered(
                lambda: self._client.patch(target, name, patch, patch_type=PatchType.MERGE, **place)
            )
        )

    async def replace(self, kind: Kind, changed: Object) -> Object:
        """The object as it is then. ConflictError if somebody has changed it since it was read."""
        return dict(await self._answered(lambda: self._client.replace(kind(changed))))

    async def approve(self, request: Object) -> None:
        """Write the conditions of a CertificateSigningRequest, which no other way changes."""
        await self._decide(CertificateSigningRequest.Approval, request)

    async def certify(self, request: Object) -> None:
        """Write a CertificateSigningRequest's certificate."""
        await self._decide(CertificateSigningRequest.Status, request)

    async def _decide(self, part: Any, request: Object) -> None:
        name = request["metadata"]["name"]
        await self._answered(lambda: self._client.replace(part.from_dict(request), name=name))

    async def delete(
        self, kind: Kind, namespace: str, name: str, uid: str = "", *, grace_s: int | None = None
    ) -> None:
        """Delete the object, if it is there and, if that is said, of this uid."""
        place = _place(namespace)
        with suppress(NotFoundError):
            if not uid:
                await self._answered(
                    lambda: self._client.delete(kind, name, grace_period=grace_s, **place)
                )
                return
            with suppress(ConflictError):  # another has its name by now
                await self._answered(lambda: self._delete(kind, name, place, uid, grace_s))

    async def _delete(
        self, kind: Kind, name: str, place: dict[str, Any], uid: str, grace_s: int | None
    ) -> None:
        """Delete what has the uid. The server compares it, since whoever asks again after a lost
        answer may find a successor under the name."""
        client: Any = self._client._client  # noqa: SLF001  the other's deletion has no such condition
        options: Object = {"kind": "DeleteOptions", "apiVersion": "v1"}
        options["preconditions"] = {"uid": uid}
        if grace_s is not None:  # beside a body the query counts for nothing
            options["gracePeriodSeconds"] = grace_s
        request = client.prepare_request("delete", kind, name=name, **place)
        request.data = options
        answer = await client.send(client.build_adapter_request(request))
        client.handle_response("delete", answer, request)

    def followed(
        self, kind: Kind, namespace: str, value: str, *, label: str = ""
    ) -> AsyncIterator[dict[str, Object]]:
        """The object of the name *value*, or those with this value of *label*, as *watched*; all
        who follow objects of a kind have one watch together."""
        known = self._following.get((kind, label))
        if known is None:
            known = self._following[kind, label] = self._follow(kind, label)
        return known.of(namespace, value)

    def _follow(self, kind: Kind, label: str) -> Following:
        async def read(namespace: str, value: str) -> list[Object]:
            if label:
                return await self.every(kind, namespace, labels=f"{label}={value}")
            return await self.every(kind, namespace, fields=f"metadata.name={value}")

        def subject(one: Object) -> str:
            meta = one["metadata"]
            return str(meta["labels"][label] if label else meta["name"])

        return Following(read, lambda: self._told(kind, label), subject)

    async def watched(
        self, kind: Kind, namespace: str, *, labels: str = "", fields: str = ""
    ) -> AsyncIterator[dict[str, Object]]:
        """All that is selected: now, and whenever any of it has changed.

        By name; of all namespaces ("*") by uid.
        """
        key = "uid" if namespace == "*" else "name"
        while True:
            found, version = await self._listed(kind, namespace, labels, fields)
            current = {one["metadata"][key]: one for one in found}
            yield current
            async for change in self._since(version, kind, namespace, labels, fields):
                if change.is_gone:
                    current.pop(change.one["metadata"][key], None)
                else:
                    current[change.one["metadata"][key]] = change.one
                yield current

    async def _told(self, kind: Kind, labels: str) -> AsyncIterator[Change | None]:
        """What changes in all namespaces; None where something may have been missed."""
        while True:
            try:
                _, version = await self._listed(kind, "*", labels, _NOTHING)
            except GritError as error:  # those who follow wait on
                log.warning("a watch is begun later", kind=kind.__name__, reason=one_line(error))
                await asyncio.sleep(_LONGEST_PAUSE_S)
                continue
            yield None
            async for change in self._since(version, kind, "*", labels, ""):
                yield change

    async def _since(
        self, version: str, kind: Kind, namespace: str, labels: str, fields: str
    ) -> AsyncIterator[Change]:
        """What has changed since the *version*, until a watch ends."""
        try:
            async for event, one in self._watching.watch(
                kind,
                **_place(namespace),
                labels=_selector(labels),
                fields=_selector(fields),
                resource_version=version,
                server_timeout=WATCH_S,
            ):
                if event != "BOOKMARK":
                    yield Change(dict(one), is_gone=event == "DELETED")
        except (httpx.HTTPError, ApiError) as error:
            log.info("a watch is begun anew", kind=kind.__name__, reason=repr(error))
            await asyncio.sleep(_RENEWED_S * random.uniform(0.5, 1))  # noqa: S311  no secret

    async def _listed(
        self, kind: Kind, namespace: str, labels: str, fields: str
    ) -> tuple[list[Object], str]:
        async def read() -> tuple[list[Object], str]:
            listing = self._client.list(
                kind, **_place(namespace), labels=_selector(labels), fields=_selector(fields)
            )
            found = [dict(one) async for one in listing]
            return found, str(listing.resourceVersion)

        return await self._answered(read)

    async def _answered(self, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer; asked again until the server gives one, for as long as patience lasts."""
        end = time.monotonic() + _PATIENCE_S
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                async with self._slots:
                    return await ask()
            except ApiError as error:
                if error.status.code not in _BUSY or time.monotonic() > end:
                    raise _told(error) from None
            except httpx.HTTPError as error:
                if _is_no_page(error):
                    raise NotFoundError(f"the API server has no {error.request.url.path}") from None
                if time.monotonic() > end:
                    why = f"has not answered for {_PATIENCE_S:g} s: {error}; look at it"
                    raise UnavailableError(f"the API server {why}") from None
            await asyncio.sleep(pause_s * random.uniform(0.5, 1))  # noqa: S311  no secret
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _is_no_page(error: httpx.HTTPError) -> bool:
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code == _NO_PAGE


def _place(namespace: str) -> dict[str, Any]:
    return {"namespace": namespace} if namespace else {}


def _selector(text: str) -> dict[str, Any] | None:
    """What lightkube makes ``a=b,c`` of; None is for a key that is there at all."""
    pairs = (part.partition("=") for part in text.split(",") if part)
    return {key: value if sign else None for key, sign, value in pairs} or None


_KINDS: dict[tuple[int, str], type[GritError]] = {
    (404, "NotFound"): NotFoundError,
    (409, "AlreadyExists"): AlreadyExistsError,
    (409, "Conflict"): ConflictError,
}
_INVALID, _FORBIDDEN = (400, 422), 403


def _told(error: ApiError) -> GritError:
    status = error.status
    return _kind(status)(f"the API server refuses: {status.message}")


def _kind(status: Any) -> type[GritError]:
    if known := _KINDS.get((status.code, status.reason)):
        return known
    if status.code == _FORBIDDEN:
        return PermissionDeniedError
    if status.code not in _INVALID:
        return UnavailableError
    causes = (status.details and status.details.causes) or ()
    if any(one.field == "metadata.uid" for one in causes):  # which nobody can change
        return ConflictError
    ours = of_reason(status.reason or "")  # a webhook of ours has refused it
    return InvalidArgumentError if ours is GritError else ours
