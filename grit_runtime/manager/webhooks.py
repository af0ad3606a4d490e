"""The server that the API server asks about new objects."""

from __future__ import annotations

import base64
import json
import time
from contextlib import asynccontextmanager

from aiohttp import web

from grit_runtime import log
from grit_runtime.errors import GritError, one_line, reason
from grit_runtime.manager import names
from grit_runtime.manager.admission import Admission, Answer, refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable

    from grit_runtime.manager.cluster import Object
    from grit_runtime.manager.metrics import Metrics

    Decide = Callable[[Object], Awaitable[Answer]]

_LIMIT_BYTES = 8 << 20  # an object has 1.5 MiB at most, and a review up to two of them


@asynccontextmanager
async def served(
    admission: Admission, metrics: Metrics, context: ssl.SSLContext, port: int
) -> AsyncIterator[None]:
    """Answer reviews at *port* while the block runs."""
    application = web.Application(client_max_size=_LIMIT_BYTES)
    for path, decide in (
        (names.POD_PATH, admission.pod),
        (names.OBJECT_PATH, admission.object),
        (names.EVICTION_PATH, admission.eviction),
        (names.DELETION_PATH, admission.deletion),
        (names.JOB_PATH, admission.job),
    ):
        application.router.add_post(path, _handler(path, decide, metrics))
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port, ssl_context=context).start()
        yield
    finally:
        await runner.cleanup()


def _handler(
    path: str, decide: Decide, metrics: Metrics
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(http: web.Request) -> web.Response:
        begin = time.monotonic()
        request = (await http.json())["request"]
        try:
            answer = await decide(request)
        except GritError as error:
            answer = refusal(error)
        metrics.reviewed(path, time.monotonic() - begin)
        return web.json_response(_review(request, answer))

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
