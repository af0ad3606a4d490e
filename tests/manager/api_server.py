"""An API server for units: it keeps objects, selects, tells of changes, and refuses what it is
told to. What a cluster decides of objects it does not."""

from __future__ import annotations

import asyncio
import itertools
import json
import uuid
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from aiohttp import web
from lightkube.config.kubeconfig import SingleConfig
from lightkube.config.models import Cluster as Where
from lightkube.config.models import Context, User

from grit_runtime.manager import cluster as kube

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import TypeVar

    from grit_runtime.manager.cluster import Cluster

    Answer = TypeVar("Answer")
    Object = dict[str, Any]


NAMESPACE = "default"


class Place(NamedTuple):
    plural: str
    namespace: str
    name: str
    part: str


class Refusal(NamedTuple):
    code: int
    reason: str
    message: str = "it is refused"
    field: str = ""  # that is the cause


class Server:
    """What is kept, by plural, namespace and name; refusals by method and plural."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, str, str], Object] = {}
        self.refused: dict[tuple[str, str], Refusal] = {}
        self.made: list[Object] = []
        self.before: Callable[[str, str], Refusal | None] = lambda _method, _plural: None
        self.delay_s = 0.0  # of each answer
        self.is_silent = False  # whether watches tell nothing, nor end
        self._versions = itertools.count(1)
        self._changes: list[tuple[int, str, Place, Object]] = []
        self._changed = asyncio.Event()

    def put(self, plural: str, one: Object) -> Object:
        """Have the object be there, as it is or made anew."""
        meta = one["metadata"]
        meta.setdefault("uid", str(uuid.uuid4()))
        minutes, seconds = divmod(len(self._changes), 60)
        meta.setdefault("creationTimestamp", f"2026-01-01T00:{minutes:02d}:{seconds:02d}Z")
        place = Place(plural, meta.get("namespace", ""), meta["name"], "")
        kind = "MODIFIED" if place[:3] in self.kept else "ADDED"
        self.kept[place[:3]] = one
        self._tell(kind, place, one)
        return one

    def remove(self, plural: str, namespace: str, name: str) -> None:
        place = Place(plural, namespace, name, "")
        self._tell("DELETED", place, self.kept.pop(place[:3]))

    def get(self, plural: str, name: str, namespace: str = NAMESPACE) -> Object:
        return self.kept[plural, namespace, name]

    def change(self, plural: str, name: str, change: Object) -> Object:
        """Merge *change* into an object of the default namespace."""
        return self.put(plural, _merged(self.get(plural, name), change))

    def of(self, plural: str) -> list[Object]:
        return [one for (kind, _, _), one in self.kept.items() if kind == plural]

    def _tell(self, kind: str, place: Place, one: Object) -> None:
        version = next(self._versions)
        one["metadata"]["resourceVersion"] = str(version)
        self._changes.append((version, kind, place, json.loads(json.dumps(one))))
        self._changed.set()
        self._changed = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        place = _place(request.path)
        await asyncio.sleep(self.delay_s)
        method = "WATCH" if "watch" in request.query else request.method
        told = self.before(method, place.plural)
        if refusal := told or self.refused.get((method, place.plural)):
            return refused(refusal)
        if request.method == "GET" and not place.name:
            return await self._listed(request, place)
        if request.method == "POST":
            return self._created(await request.json(), place)
        return await self._of_one(request, place)

    async def _of_one(self, request: web.Request, place: Place) -> web.Response:
        there = self.kept.get(place[:3])
        if there is None:
            return refused(Refusal(404, "NotFound", f"{place.plural} {place.name} not found"))
        if request.method == "GET":
            return _json(there)
        if request.method == "DELETE":
            return self._deleted(await request.text(), there, place)
        return self._written(request.method, await request.json(), there, place)

    def _created(self, one: Object, place: Place) -> web.Response:
        one["metadata"].setdefault("name", f"{one['metadata'].get('generateName')}{uuid.uuid4()}")
        key = place.plural, place.namespace, one["metadata"]["name"]
        if key in self.kept:
            return refused(Refusal(409, "AlreadyExists"))
        self.made.append(one)
        return _json(self.put(place.plural, one), status=201)

    def _deleted(self, options: str, there: Object, place: Place) -> web.Response:
        told = json.loads(options).get("preconditions", {}) if options else {}
        if told.get("uid") not in (None, there["metadata"]["uid"]):
            return refused(Refusal(409, "Conflict", "the UID in the precondition is another"))
        self.remove(*place[:3])
        return _json(there)

    def _written(self, method: str, change: Object, there: Object, place: Place) -> web.Response:
        meta = change.get("metadata") or {}
        if meta.get("uid") not in (None, there["metadata"]["uid"]):
            return refused(Refusal(422, "Invalid", "field is immutable", "metadata.uid"))
        if meta.get("resourceVersion") not in (None, there["metadata"]["resourceVersion"]):
            return refused(Refusal(409, "Conflict"))
        new = change if method == "PUT" else _merged(there, change)
        return _json(self.put(place.plural, new))

    async def _listed(self, request: web.Request, place: Place) -> web.StreamResponse:
        query = request.query
        if "watch" in query:
            return await self._watched(request, place)
        found = [
            one
            for (plural, namespace, _), one in self.kept.items()
            if plural == place.plural
            and place.namespace in ("", namespace)
            and _is_selected(one, query.get("labelSelector", ""), query.get("fieldSelector", ""))
        ]
        version = str(self._changes[-1][0]) if self._changes else "0"
        return _json({"metadata": {"resourceVersion": version}, "items": found})

    async def _watched(self, request: web.Request, place: Place) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        seen = int(request.query["resourceVersion"])
        if "allowWatchBookmarks" in request.query:
            await _say(response, "BOOKMARK", {"metadata": {"resourceVersion": str(seen)}})
        while True:
            changed = self._changed
            changes = () if self.is_silent else tuple(self._changes)
            for version, kind, (plural, namespace, _, _), one in changes:
                if (
                    version > seen
                    and plural == place.plural
                    and place.namespace in ("", namespace)
                    and _is_selected(one, request.query.get("labelSelector", ""), "")
                ):
                    await _say(response, kind, one)
                seen = max(seen, version)
            await changed.wait()


async def _say(response: web.StreamResponse, kind: str, one: Object) -> None:
    """An event of a watch."""
    line = json.dumps({"type": kind, "object": one})
    await response.write(line.encode() + b"\n")


def _place(path: str) -> Place:
    parts = path.strip("/").split("/")
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = ""
    if parts[0] == "namespaces":
        namespace, parts = parts[1], parts[2:]
    plural, name, part = (*parts, "", "")[:3]
    return Place(plural, namespace, name, part)


def _is_selected(one: Object, labels: str, fields: str) -> bool:
    there = one["metadata"].get("labels") or {}
    for pair in filter(None, labels.split(",")):
        key, _, value = pair.partition("=")
        if there.get(key) != value:
            return False
    for pair in filter(None, fields.split(",")):
        path, _, value = pair.partition("=")
        found: Any = one
        for step in path.split("."):
            found = (found or {}).get(step)
        if found != value:
            return False
    return True


def _merged(there: Any, change: Any) -> Any:
    """RFC 7386."""
    if not isinstance(change, dict):
        return change
    new = dict(there) if isinstance(there, dict) else {}
    for key, value in change.items():
        if value is None:
            new.pop(key, None)
        else:
            new[key] = _merged(new.get(key), value)
    return new


def _json(body: Object, status: int = 200) -> web.Response:
    # Without a charset: lightkube reads no other Status.
    text = json.dumps(body).encode()
    return web.Response(body=text, status=status, content_type="application/json")


def refused(refusal: Refusal) -> web.Response:
    """The answer."""
    status: Object = {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": refusal.code,
        "reason": refusal.reason,
        "message": refusal.message,
    }
    if refusal.field:
        status["details"] = {"causes": [{"reason": "FieldValueInvalid", "field": refusal.field}]}
    return _json(status, status=refusal.code)


@asynccontextmanager
async def serving(made: Server | None = None) -> AsyncIterator[tuple[Server, Cluster]]:
    """A server, and the cluster as the manager sees it by it."""
    server = made or Server()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    address = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        config = SingleConfig("here", Context("here"), Where(address), User())
        async with kube.reached(config) as cluster:
            yield server, cluster
    finally:
        await runner.cleanup()


def asked(server: Server, what: Callable[[Cluster], Awaitable[Answer]]) -> Answer:
    """What it comes to, with the cluster as the manager sees it."""

    async def ask() -> Answer:
        async with serving(server) as (_, cluster):
            return await what(cluster)

    return asyncio.run(ask())
