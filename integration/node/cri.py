"""A client of containerd's CRI socket, as thin as one can be."""

from __future__ import annotations

import time
from typing import TypeVar

import grpc

from grit_runtime.proto import cri_pb2

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Set
    from pathlib import Path

    from google.protobuf.message import Message

DEFAULT_TIMEOUT_S = 120  # kubelet's runtimeRequestTimeout

_NOT_YET = "server is not initialized yet"  # internal/cri/instrument/instrumented_service.go
_ASK_AGAIN_S = 0.1

Reply = TypeVar("Reply", bound="Message")


class CriError(Exception):
    """What containerd answered instead of a reply."""

    def __init__(self, method: str, code: grpc.StatusCode, details: str | None) -> None:
        super().__init__(f"{method}: {code.name}: {details}")
        self.code = code
        self.details = details or ""


class Cri:
    """Calls of runtime.v1 on one socket."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix://{socket}")

    def close(self) -> None:
        """Drop the connection."""
        self._channel.close()

    def call(
        self,
        method: str,
        request: Message,
        reply: type[Reply],
        *,
        service: str = "RuntimeService",
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Reply:
        """Call *method* and wait for its answer, connecting again first where that is needed."""
        call = self._channel.unary_unary(
            f"/runtime.v1.{service}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        end = time.monotonic() + timeout_s
        while True:
            try:
                answer: Reply = call(request, timeout=timeout_s, wait_for_ready=True)
            except grpc.RpcError as error:
                code = error.code()
                # Started anew, containerd answers before it can; kubelet asks again too.
                if _NOT_YET in (error.details() or "") and time.monotonic() < end:
                    time.sleep(_ASK_AGAIN_S)
                    continue
                # Nobody here cancels a call: the server's clock saw the deadline pass first.
                if code == grpc.StatusCode.CANCELLED:
                    code = grpc.StatusCode.DEADLINE_EXCEEDED
                raise CriError(method, code, error.details()) from None
            return answer

    def becomes_ready(
        self, containerd: subprocess.Popen[str] | None, wanted: Set[str], timeout_s: float
    ) -> bool:
        """Wait until the *wanted* conditions hold; false if time runs out, or *containerd* ends.

        That is None if it is somebody else's child.
        """
        end = time.monotonic() + timeout_s
        while (left_s := end - time.monotonic()) > 0:
            if containerd is not None and containerd.poll() is not None:
                return False
            request = cri_pb2.StatusRequest()
            try:
                reply = self.call("Status", request, cri_pb2.StatusResponse, timeout_s=left_s)
            except CriError as error:
                if error.code != grpc.StatusCode.UNAVAILABLE:
                    raise
                continue  # it went out on the connection to a containerd that has ended
            if wanted <= {each.type for each in reply.status.conditions if each.status}:
                return True
            time.sleep(_ASK_AGAIN_S)
        return False
