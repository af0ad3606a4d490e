"""A collector of traces: what speaks OTLP over HTTP sends its spans here."""

from __future__ import annotations

import socket
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Condition, Thread
from typing import TYPE_CHECKING, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from opentelemetry.proto.common.v1.common_pb2 import KeyValue
    from opentelemetry.proto.trace.v1 import trace_pb2

PATH = "/v1/traces"


class Received(NamedTuple):
    """A span, and who has sent it."""

    span: trace_pb2.Span
    resource: dict[str, str]

    @property
    def attributes(self) -> dict[str, str]:
        return _plain(self.span.attributes)


class Collector:
    """What was sent to the *endpoint* until now."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._received: list[Received] = []
        self._changed = Condition()

    def take(self, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self._changed:
            for batch in request.resource_spans:
                resource = _plain(batch.resource.attributes)
                spans = (span for scope in batch.scope_spans for span in scope.spans)
                self._received += [Received(span, resource) for span in spans]
            self._changed.notify_all()

    def wait_for(self, *names: str, timeout_s: float = 30) -> list[Received]:
        """All that was received, once there is a span of each of these names."""

        def are_there() -> bool:
            return set(names) <= {one.span.name for one in self._received}

        with self._changed:
            assert self._changed.wait_for(are_there, timeout_s), self._received
            return list(self._received)


@contextmanager
def collecting(listening: socket.socket | None = None) -> Iterator[Collector]:
    """A collector on that socket, or on one of the loopback interface."""
    listening = listening or socket.create_server(("127.0.0.1", 0))
    host, port = listening.getsockname()
    collector = Collector(f"http://{host}:{port}")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert (self.path, self.headers["Content-Type"]) == (PATH, "application/x-protobuf")
            collector.take(self.rfile.read(int(self.headers["Content-Length"])))
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            with suppress(ConnectionError):  # who has sent it may have been killed
                self.end_headers()
                self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Nobody needs a line for each."""

    server = ThreadingHTTPServer((host, port), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _plain(attributes: Iterable[KeyValue]) -> dict[str, str]:
    return {one.key: one.value.string_value or str(one.value.int_value) for one in attributes}
