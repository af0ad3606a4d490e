"""The server that the API server asks about new objects."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from contextlib import asynccontextmanager, suppress

from aiohttp import web

from grit_runtime import log
from grit_runtime.errors import GritError, one_line, reason
from grit_runtime.manager import names
from grit_runtime.manager.admission import Admission, Answer, refusal
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    from grit_runtime.manager.cluster import Object
    from grit_runtime.manager.metrics import Metrics

    Decide = Callable[[Object], Awaitable[Answer]]

_LIMIT_BYTES = 8 << 20  # an object has 1.5 MiB at most, and a review up to two of them
_READY_S = 0.8  # the rest of the 3 s is for the decision


class Asked(NamedTuple):
    """Who decides, and what is to be known of it."""

    admission: Admission
    metrics: Metrics
    ready: Callable[[], Awaitable[None]]  # to be asked about new pods
    is_stopping: Callable[[], bool]


@asynccontextmanager
async def served(asked: Asked, context: ssl.SSLContext, port: int) -> AsyncIterator[None]:
    """Answer reviews at *port* while the block runs."""
    admission = asked.admission
    application = web.Application(client_max_size=_LIMIT_BYTES)
    for path, decide in (
        (names.POD_PATH, admission.pod),
        (names.OBJECT_PATH, admission.object),
        (names.EVICTION_PATH, admission.eviction),
        (names.DELETION_PATH, admission.deletion),
        (names.JOB_PATH, admission.job),
    ):
        application.router.add_post(path, _handler(path, decide, asked))
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port, ssl_context=context).start()
        yield
    finally:
        await runner.cleanup()


def _handler(
    path: str, decide: Decide, asked: Asked
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(http: web.Request) -> web.Response:
        begin = time.monotonic()
        request = (await http.json())["request"]
        if path == names.POD_PATH:
            with suppress(TimeoutError):
                async with asyncio.timeout(_READY_S):
                    await asked.ready()
        try:
            answer = await decide(request)
        except GritError as error:
            answer = refusal(error)
        asked.metrics.reviewed(path, time.monotonic() - begin)
        response = web.json_response(_review(request, answer))
        if asked.is_stopping():  # the next one is asked of another manager
            response.force_close()
        return response

    return handle


def _review(request: Object, answer: Answer) -> Object:
    response: Object = {"uid": request["uid"], "allowed": answer.error is None}
    if answer.error is not None:
        text = one_line(answer.error)
        log.info("an object is refused", reason=text)
        response["status"] = {"code": answer.code, "reason": reason(answer.error), "message": text}
    if answer.patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(json.dumps(answer.patch).encode()).decode()
    if answer.warnings:
        response["warnings"] = list(answer.warnings)
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}
