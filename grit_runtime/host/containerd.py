"""containerd through its CRI: which pods and containers there are. Blocking gRPC calls.

Source: k8s.io/cri-api runtime/v1 api.proto.
"""

from typing import Any, NamedTuple, TypeVar

import grpc
from google.protobuf.message import Message

from grit_runtime.errors import InvalidArgumentError, NotFoundError
from grit_runtime.proto import cri_pb2 as cri

_CALL_TIMEOUT_S = 10

M = TypeVar("M", bound=Message)


class Mount(NamedTuple):
    """A mount that the pod's spec asks for, or kubelet by itself."""

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
    mounts: tuple[Mount, ...]


class Pod(NamedTuple):
    sandbox_id: str
    namespace: str
    name: str
    uid: str
    is_kubelets: bool  # kubelet made it, and restarts what ends in it
    containers: tuple[Container, ...]


class Containerd:
    """A connection to containerd's CRI socket; a context manager."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel = grpc.insecure_channel(f"unix://{address}")

    def __enter__(self) -> "Containerd":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def version(self) -> str:
        request = cri.VersionRequest()
        return self._call("Version", request, cri.VersionResponse).runtime_version

    def find(self, target: str) -> Pod:
        """The pod that *target* names, with the containers that it means.

        *target* is NAMESPACE/POD, or a sandbox's id (all containers of the pod), or a container's
        id (that container alone); ids may be cut short as long as they fit one thing only.
        """
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
            containers=tuple(self._status(container.id) for container in meant),
        )

    def _status(self, container_id: str) -> Container:
        request = cri.ContainerStatusRequest(container_id=container_id)
        status = self._call("ContainerStatus", request, cri.ContainerStatusResponse).status
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
                Mount(mount.container_path, mount.host_path, mount.readonly)
                for mount in status.mounts
            ),
        )

    def _call(self, method: str, request: Message, answer: type[M]) -> M:
        call: Any = self._channel.unary_unary(
            f"/runtime.v1.RuntimeService/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        try:
            reply: M = call(request, timeout=_CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            status: Any = error  # grpc's errors are also calls, which carry the status
            raise NotFoundError(
                f"containerd at {self._address}: {method}: {status.details()}"
            ) from None
        return reply


def _names(target: str, sandbox: cri.PodSandbox) -> bool:
    pod = f"{sandbox.metadata.namespace}/{sandbox.metadata.name}"
    return target == pod or sandbox.id.startswith(target)


def _newest(containers: list[cri.Container]) -> list[cri.Container]:
    """The last attempt of each container of a pod, in the order they were first made."""
    newest: dict[str, cri.Container] = {}
    for container in sorted(containers, key=lambda c: c.created_at):
        newest[container.metadata.name] = container
    return list(newest.values())
