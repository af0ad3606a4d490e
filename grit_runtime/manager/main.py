"""The manager, from its start to SIGTERM: webhooks at once, controllers when it leads."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime

import aiohttp
import kopf

from grit_runtime import log
from grit_runtime.manager import (
    admission,
    api,
    authority,
    checkpoints,
    gates,
    lease,
    metrics,
    migrations,
    names,
    node_answers,
    nodes,
    patience,
    pod_fields,
    responder,
    restores,
    retention,
    schedules,
    targets,
    webhooks,
)
from grit_runtime.manager import cluster as kube
from grit_runtime.manager.agents import Access, Agents
from grit_runtime.manager.slots import Slots
from grit_runtime.manager.world import World
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    from grit_runtime.manager.cluster import Cluster
    from grit_runtime.manager.lease import Lease

    Run = Callable[[World, str, str], Awaitable[object]]
    Forget = Callable[[World, str, str, str], Awaitable[None]]

AT_ONCE = 500  # objects of a kind that are worked on: a Migration waits for its Checkpoint
SERVES_ON_S = 6.0  # after it is told to end: until no API server asks it any more

_RETRY_S = 2.0
_CONNECTIONS = 20  # kopf's: six for its watches
_WORK_ENDS_S = 10.0
_FORGET_S = 180.0  # after which an object goes whatever is left of it


_KEPT_S, _LOOK_S = 5.0, 0.02


class Options(NamedTuple):
    namespace: str
    webhook_port: int
    metrics_port: int
    agent_port: int
    agent_token: str  # a file
    checkpoint_root: str


class _Kind(NamedTuple):
    """How the objects of a kind are worked on, and ended where that takes more than to stop."""

    name: str
    plural: str
    run: Callable[[World, str, str], Awaitable[kube.Object]]
    ended: tuple[str, ...]  # phases
    forget: Forget | None = None


_KINDS = (
    _Kind("Checkpoint", "checkpoints", checkpoints.run, checkpoints.ENDED, checkpoints.forget),
    _Kind("Restore", "restores", restores.run, restores.ENDED),
    _Kind("Migration", "migrations", migrations.run, migrations.ENDED, migrations.forget),
)


async def run(options: Options) -> None:
    """Serve until a moment after SIGTERM or SIGINT. UnavailableError when it leads no longer."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(kube.connected())
        urgent = await stack.enter_async_context(kube.connected())  # waits for no controller
        own_lease = lease.Lease(  # nor for reviews, however many there are
            await stack.enter_async_context(kube.connected()),
            options.namespace,
            f"{os.uname().nodename}-{os.getpid()}",
        )
        own = await authority.ensured(cluster, options.namespace)
        access = Access(options.namespace, options.agent_port, own.pem, options.agent_token)
        agents = Agents(cluster, access)
        known = nodes.Nodes(cluster)
        told = metrics.Metrics()
        serving = authority.Serving(own, _names(options.namespace))
        await stack.enter_async_context(metrics.served(told, options.metrics_port))
        kept = pod_fields.PodFields(cluster)
        decisions = admission.Admission(urgent, known, kept, options.checkpoint_root)
        asked = webhooks.Asked(decisions, told, known.listed, stopping.is_set)
        await stack.enter_async_context(
            webhooks.served(asked, serving.context, options.webhook_port)
        )

        async def lead() -> None:
            await known.listed()
            told.leads(1)
            world = World(cluster, agents, known, options.checkpoint_root)
            await patience.together(
                _operate(world, told),
                node_answers.keep(world),
                authority.keep_bundles(cluster, own),
                authority.sign_agents(cluster, own, options.namespace),
                nodes.keep_noted(agents, cluster),
                responder.respond(cluster),
                gates.keep(cluster, decisions.waiting_pod),
            )

        log.info("the manager serves", port=options.webhook_port)
        await patience.together(
            known.watch(),
            kept.watch(),
            serving.keep(),
            _lead_until(stopping, own_lease, lead),
        )


async def _lead_until(
    stopping: asyncio.Event, own_lease: Lease, lead: Callable[[], Awaitable[None]]
) -> None:
    """Lead as soon as it may; once it is to end, let another one, and serve on for a moment.

    An API server hears a little later than this pod that it is asked no more. What it then cannot
    ask it lets go: a pod that is evicted is lost, one that is made starts from its image.
    """
    await patience.together(own_lease.led(lead), stopping.wait())
    end = asyncio.get_running_loop().time() + SERVES_ON_S
    await own_lease.release()
    await asyncio.sleep(end - asyncio.get_running_loop().time())


def _names(namespace: str) -> tuple[str, ...]:
    service = f"{names.MANAGER}.{namespace}.svc"
    return (service, f"{service}.cluster.local")


async def _operate(world: World, told: metrics.Metrics) -> None:
    """Run the controllers, each object by a task of its own."""
    registry = kopf.OperatorRegistry()
    settings = kopf.OperatorSettings()
    settings.persistence.finalizer = names.FINALIZER
    settings.persistence.diffbase_storage = _NoDifferences()
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(
        prefix="manager.grit.dev"
    )
    settings.posting.reporting_component = names.MANAGER
    settings.posting.level = 100  # only what the controllers tell themselves
    settings.scanning.disabled = True
    settings.process.ultimate_exiting_timeout = None
    settings.watching.server_timeout = kube.WATCH_S
    settings.watching.client_timeout = kube.SILENT_S
    kopf.on.login(registry=registry, id="login", errors=kopf.ErrorsMode.IGNORED)(_log_in)
    for kind in _KINDS:
        running: dict[str, asyncio.Event] = {}
        work = _daemon(world, told, kind, running)
        _control(registry, kind.plural, kind.plural, _is_open(kind.ended), work)
        if kind.forget:
            _on_deletion(registry, kind.plural, world, kind.forget, running)
    _keep_schedules(registry, world)
    await kopf.operator(registry=registry, settings=settings, clusterwide=True, standalone=True)


class _NoDifferences(kopf.DiffBaseStorage):
    """What an object was before is of no concern: it is not noted at each."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def store(self, **_: Any) -> None:
        pass


async def _log_in(**told: Any) -> kopf.AiohttpSession | None:
    """Whatever there is, as lightkube does it; with few connections: each takes 0.3 MiB."""
    info = kopf.login_with_kubeconfig(**told) or kopf.login_with_service_account(**told)
    if info is None:
        return None
    connector = aiohttp.TCPConnector(limit=_CONNECTIONS, ssl=info.as_ssl_context())
    session = aiohttp.ClientSession(connector=connector, headers=info.as_http_headers())
    return kopf.AiohttpSession(server=info.server, aiohttp_session=session)


def _keep_schedules(registry: kopf.OperatorRegistry, world: World) -> None:
    """Schedules, and checkpoints that are not kept forever: for as long as they are there."""

    def goes(spec: Any, status: Any, **_: object) -> bool:
        return bool(spec.get("retention")) and status.get("phase") in retention.ENDED

    for plural, when, run_one in (
        ("checkpointschedules", None, schedules.run),
        ("checkpoints", goes, retention.run),
    ):
        _control(registry, f"{plural}-kept", plural, when, _standing(world, run_one))


def _standing(world: World, run_one: Run) -> Callable[..., Awaitable[None]]:
    async def work(name: str, namespace: str, **_: object) -> None:
        await run_one(world, namespace, name)

    return work


def _daemon(
    world: World, told: metrics.Metrics, kind: _Kind, running: dict[str, asyncio.Event]
) -> Callable[..., Awaitable[None]]:
    slots = Slots(AT_ONCE)

    async def work(name: str, namespace: str, meta: Any, status: Any, **_: object) -> None:
        def is_waiting() -> bool:
            return kind.name == "Restore" and _waits(meta)

        before, now = status.get("phase"), {}
        told.begun(kind.name)
        running[meta["uid"]] = over = asyncio.Event()
        try:
            if kind.forget:
                await _kept(world.cluster, kind.name, meta)
            async with slots.one(is_waiting):
                now = await kind.run(world, namespace, name)
        finally:
            over.set()
            del running[meta["uid"]]
            if not now and status.get("phase") in kind.ended:
                now = status  # kopf has seen the end, and cancels
            phase = now.get("phase", "")
            begun = datetime.fromisoformat(meta["creationTimestamp"])
            took_s = (datetime.now(UTC) - begun).total_seconds()
            phase = "" if phase == before else phase
            told.ended(kind.name, phase, now.get("reason", ""), took_s)

    return work


async def _kept(cluster: Cluster, kind: str, meta: Any) -> None:
    """Wait until the object does not go without a word; *meta* is what kopf knows by now.

    kopf adds its finalizer, and whoever writes meanwhile is in its way. After a while it is added
    here: kopf gives up without telling anybody.
    """
    loop = asyncio.get_running_loop()
    end_s = loop.time() + _KEPT_S
    while names.FINALIZER not in (there := meta.get("finalizers") or ()):
        if loop.time() > end_s:
            new = {"finalizers": [*there, names.FINALIZER], "uid": meta["uid"]}
            new["resourceVersion"] = meta["resourceVersion"]
            place = meta["namespace"], meta["name"]
            await cluster.patch(kube.OF_KIND[kind], *place, {"metadata": new})
            return
        await asyncio.sleep(_LOOK_S)


def _waits(meta: Any) -> bool:
    """Whether a Restore waits for somebody to make a pod, which may take forever."""
    is_selected = targets.SELECTED in (meta.get("annotations") or {})
    return not is_selected and not meta.get("ownerReferences")


def _control(
    registry: kopf.OperatorRegistry,
    id_: str,
    plural: str,
    when: Callable[..., bool] | None,
    work: Callable[..., Awaitable[None]],
) -> None:
    """Have each object that *when* is true of be worked on by a task of its own."""
    kopf.daemon(
        *(api.GROUP, api.VERSION, plural),
        registry=registry,
        id=id_,
        when=when,
        backoff=_RETRY_S,
        cancellation_timeout=1.0,
    )(work)


def _is_open(ended: tuple[str, ...]) -> Callable[..., bool]:
    return lambda status, **_: status.get("phase") not in ended


def _on_deletion(
    registry: kopf.OperatorRegistry,
    plural: str,
    world: World,
    forget: Forget,
    running: dict[str, asyncio.Event],
) -> None:
    async def end(name: str, namespace: Any, uid: Any, **_: Any) -> None:
        # kopf has cancelled it. What it is about to ask of a node would be asked after the end.
        if over := running.get(uid):
            with suppress(TimeoutError):
                async with asyncio.timeout(_WORK_ENDS_S):
                    await over.wait()
        await forget(world, namespace, name, uid)

    kopf.on.delete(
        *(api.GROUP, api.VERSION, plural),
        registry=registry,
        id=f"{plural}-end",
        backoff=_RETRY_S,
        timeout=_FORGET_S,
    )(end)
