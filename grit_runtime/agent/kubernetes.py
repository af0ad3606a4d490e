"""The cluster's API server, called as the ServiceAccount whose files a directory has.

The directory is a projected volume: token, ca.crt and namespace; kubelet replaces the token before
it ends, so it is read for each request. Blocking. Spec: Kubernetes API concepts, "Accessing the
Kubernetes API from a Pod".
"""

from __future__ import annotations

import http.client
import json
import os
import ssl

from grit_runtime.errors import (
    AlreadyExistsError,
    ConfigurationError,
    FailedPreconditionError,
    GritError,
    NotFoundError,
    ProtocolError,
    UnavailableError,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_TIMEOUT_S = 5.0
_LIMIT_BYTES = 4 << 20

# The others are faults of how the agent was set up, and not of who calls it.
_KINDS: dict[int, type[GritError]] = {404: NotFoundError, 409: AlreadyExistsError}
_BUSY = 429


class ApiServer:
    """The one that KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT name.

    `get` and `post` return the object that it answers with; UnavailableError if it does not.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        try:
            self._host = os.environ["KUBERNETES_SERVICE_HOST"]
            self._port = int(os.environ["KUBERNETES_SERVICE_PORT"])
        except (KeyError, ValueError):
            raise ConfigurationError(
                "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT name no API server; a "
                "ServiceAccount is for an agent that a pod has started"
            ) from None
        self.namespace = self._read("namespace")

    def get(self, path: str) -> dict[str, Any]:
        return self._answer("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._answer("POST", path, json.dumps(body).encode())

    def _answer(self, verb: str, path: str, body: bytes | None) -> dict[str, Any]:
        # Not create_default_context: from Python 3.13 on that refuses the CAs of many clusters,
        # whose certificates have no key identifiers.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(f"{self._directory}/ca.crt")
        headers = {"Authorization": f"Bearer {self._read('token')}", "Accept": "application/json"}
        if body:
            headers["Content-Type"] = "application/json"
        connection = http.client.HTTPSConnection(
            self._host, self._port, timeout=_TIMEOUT_S, context=context
        )
        try:
            connection.request(verb, path, body, headers)
            reply = connection.getresponse()
            data = reply.read(_LIMIT_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(
                f"the API server at {self._host} port {self._port} does not answer: {error}"
            ) from None
        finally:
            connection.close()
        return self._object(f"{verb} {path}", reply.status, data)

    def _object(self, request: str, status: int, data: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        is_object = isinstance(answer, dict)
        if status in {200, 201} and is_object:
            found: dict[str, Any] = answer
            return found
        text = answer.get("message", "") if is_object else ""
        what = f"the API server answers {request} with {status}: {text or data[:200]!r}"
        if status in {200, 201}:
            raise ProtocolError(f"{what}, expected an object")
        if status >= 500 or status == _BUSY:
            raise UnavailableError(what)
        raise _KINDS.get(status, FailedPreconditionError)(what)

    def _read(self, name: str) -> str:
        with open(f"{self._directory}/{name}", encoding="ascii") as file:
            return file.read().strip()
