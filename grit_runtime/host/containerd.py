"""Finding pods and containers through containerd's CRI. Blocking gRPC calls.

Source: k8s.io/cri-api runtime/v1 api.proto.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from grit_runtime.errors import DeadlineExceededError, InvalidArgumentError, NotFoundError
from grit_runtime.proto import cri_pb2 as cri
from grit_runtime.startup.named import NamedTuple

_CALL_TIMEOUT_S = 10
_IMAGES = "/runtime.v1.ImageService"

M = TypeVar("M", bound=Message)


class CriMount(NamedTuple):
    """A mount that the pod's spec or kubelet asks for."""

    destination: str
    source: str
    readonly: bool


class Container(NamedTuple):
    id: str
    name: str
    state: str  # created, running, exited or unknown
    exit_code: int
    image: str
    image_digest: str
    log_path: str
    created_ns: int
    started_ns: int
    mounts: tuple[CriMount, ...]
    runtime: str  # the type of its shim, or the program that the shim is configured to run


class Pod(NamedTuple):
    sandbox_id: str
    namespace: str
    name: str
    uid: str
    is_kubelets: bool  # kubelet made it, and restarts containers that end
    is_whole: bool  # all of its containers are selected, not one alone
    annotations: dict[str, str]
    containers: tuple[Container, ...]

    @property
    def running(self) -> tuple[Container, ...]:
        """The running containers."""
        return tuple(c for c in self.containers if c.state == "running")


class Status(NamedTuple):
    """What containerd says of itself."""

    not_ready: tuple[str, ...]  # the conditions that do not hold
    config: str  # of its CRI plugin, as JSON


class Containerd:
    """A connection to containerd's CRI socket; a context manager.

    DeadlineExceededError if a call is not answered in *timeout_s*.
    """

    def __init__(self, address: str, timeout_s: float = _CALL_TIMEOUT_S) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(f"unix://{address}")

    def __enter__(self) -> Containerd:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def version(self) -> str:
        request = cri.VersionRequest()
        return self._call("Version", request, cri.VersionResponse).runtime_version

    def status(self) -> Status:
        reply = self._call("Status", cri.StatusRequest(verbose=True), cri.StatusResponse)
        not_ready = [
            f"{one.type}: {one.message}" for one in reply.status.conditions if not one.status
        ]
        return Status(tuple(not_ready), reply.info["config"])

    def image_directory(self) -> str:
        """Where the snapshotter of CRI's images keeps them; its name is in it."""
        method = f"{_IMAGES}/ImageFsInfo"
        reply = self._call(method, cri.ImageFsInfoRequest(), cri.ImageFsInfoResponse)
        return reply.image_filesystems[0].fs_id.mountpoint

    def handlers(self) -> dict[str, dict[str, Any]]:
        """The handlers that containerd has read, under its own names for their fields."""
        config = json.loads(self.status().config)
        found: dict[str, dict[str, Any]] = config["containerd"]["runtimes"]
        return found

    def pods_of(self, handler: str) -> dict[str, str]:
        """NAMESPACE/POD of all pods that run under *handler*, by their sandboxes' ids."""
        reply = self._call(
            "ListPodSandbox", cri.ListPodSandboxRequest(), cri.ListPodSandboxResponse
        )
        return {
            sandbox.id: f"{sandbox.metadata.namespace}/{sandbox.metadata.name}"
            for sandbox in reply.items
            if sandbox.runtime_handler == handler and sandbox.state == cri.SANDBOX_READY
        }

    def stop(self, sandbox_id: str) -> None:
        """End all containers of a pod; kubelet, if it still wants the pod, starts it anew."""
        request = cri.StopPodSandboxRequest(pod_sandbox_id=sandbox_id)
        self._call("StopPodSandbox", request, cri.StopPodSandboxResponse)

    def find(self, target: str) -> Pod:
        """The pod that *target* names, with the containers that it selects.

        *target* is NAMESPACE/POD, or a sandbox's id (all containers of the pod), or a container's
        id (that container alone); ids may be cut short as long as they are unambiguous.
        """
        if not target:
            raise InvalidArgumentError(
                "no pod or container is named; expected NAMESPACE/POD or an id"
            )
        sandboxes = self._call(
            "ListPodSandbox", cri.ListPodSandboxRequest(), cri.ListPodSandboxResponse
        ).items
        containers = self._call(
            "ListContainers", cri.ListContainersRequest(), cri.ListContainersResponse
        ).containers
        pods = [s for s in sandboxes if s.state == cri.SANDBOX_READY and _names(target, s)]
        chosen: list[cri.Container] = (
            [] if pods else [c for c in containers if c.id.startswith(target)]
        )
        if len(pods) + len(chosen) > 1:
            ids = ", ".join([s.id[:13] for s in pods] + [c.id[:13] for c in chosen])
            raise InvalidArgumentError(f"{target} names more than one thing: {ids}; give one id")
        if chosen:
            pods = [s for s in sandboxes if s.id == chosen[0].pod_sandbox_id]
        if not pods:
            raise NotFoundError(
                f"{target}: containerd at {self._address} runs no such pod or container; "
                "expected NAMESPACE/POD or an id"
            )
        sandbox = pods[0]
        meant = chosen or _newest([c for c in containers if c.pod_sandbox_id == sandbox.id])
        return Pod(
            sandbox_id=sandbox.id,
            namespace=sandbox.metadata.namespace,
            name=sandbox.metadata.name,
            uid=sandbox.metadata.uid,
            is_kubelets="io.kubernetes.pod.uid" in sandbox.labels,
            is_whole=not chosen,
            annotations=dict(sandbox.annotations),
            containers=tuple(self._status(container.id) for container in meant),
        )

    def _status(self, container_id: str) -> Container:
        request = cri.ContainerStatusRequest(container_id=container_id, verbose=True)
        reply = self._call("ContainerStatus", request, cri.ContainerStatusResponse)
        status = reply.status
        return Container(
            id=status.id,
            name=status.metadata.name,
            state=cri.ContainerState.Name(status.state).removeprefix("CONTAINER_").lower(),
            exit_code=status.exit_code,
            image=status.image.image,
            image_digest=status.image_ref,
            log_path=status.log_path,
            created_ns=status.created_at,
            started_ns=status.started_at,
            mounts=tuple(
                CriMount(mount.container_path, mount.host_path, mount.readonly)
                for mount in status.mounts
            ),
            runtime=_runtime(json.loads(reply.info["info"])),
        )

    def _call(self, method: str, request: Message, answer: type[M]) -> M:
        call: Any = self._channel.unary_unary(
            method if method.startswith("/") else f"/runtime.v1.RuntimeService/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        try:
            reply: M = call(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            status: Any = error  # grpc's errors are also calls, which carry the status
            if status.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise DeadlineExceededError(
                    f"containerd at {self._address} has not answered {method} in "
                    f"{self._timeout_s:g} s"
                ) from None
            raise NotFoundError(
                f"containerd at {self._address}: {method}: {status.details()}"
            ) from None
        return reply


def _names(target: str, sandbox: cri.PodSandbox) -> bool:
    pod = f"{sandbox.metadata.namespace}/{sandbox.metadata.name}"
    return target == pod or sandbox.id.startswith(target)


def _runtime(info: dict[str, Any]) -> str:
    """From the verbose info of a container: containerd's internal/cri/types/sandbox_info.go."""
    options = info.get("runtimeOptions") or {}
    return str(options.get("binary_name") or info["runtimeType"])


def _newest(containers: list[cri.Container]) -> list[cri.Container]:
    """The last attempt of each container of a pod, in the order they were first made."""
    newest: dict[str, cri.Container] = {}
    for container in sorted(containers, key=lambda c: c.created_at):
        newest[container.metadata.name] = container
    return list(newest.values())
