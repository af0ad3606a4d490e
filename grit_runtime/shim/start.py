"""Starts a shim: finds or binds its socket, takes the caller's place, and serves in the background.

One shim serves the containers of a pod: the first `start` begins it, the others find its socket.
Spec: containerd v2.1.9 cmd/containerd-shim-runc-v2/manager/manager_linux.go.
"""

from __future__ import annotations

import os

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from grit_runtime import log
from grit_runtime.errors import InvalidArgumentError
from grit_runtime.host import cgroup, config_json, linux
from grit_runtime.model import cri, runtime_options
from grit_runtime.proto import bootstrap_pb2
from grit_runtime.shim import bundle, server, sockets
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import NoReturn

    from grit_runtime.shim.request import Request

GROUP_ANNOTATIONS = ("io.containerd.runc.v2.group", cri.SANDBOX_ID)
OOM_SCORE_ADJ_MAX = 1000


class Place(NamedTuple):
    """Where a shim is reached; *listener* is None if another shim serves there already."""

    address: str
    listener: socket.socket | None


def start_in_process(request: Request) -> bytes:
    """Start the shim as a process that outlives this one; the answer for containerd."""
    place = find(request)
    if place.listener is not None:
        adopt_caller_context(request)
        if os.fork() == 0:
            serve(request, place.listener)
    return place.address.encode()


def serve(request: Request, listener: socket.socket) -> NoReturn:
    """Be the shim, detached from the process that has started it."""
    os.setsid()
    null_fd = os.open(os.devnull, os.O_RDWR)
    # containerd reads the fifo, and may restart: open for reading too, the fifo never breaks.
    log_fd = os.open(f"{request.directory}/log", os.O_RDWR | os.O_NONBLOCK)
    for target, fd in enumerate((null_fd, null_fd, log_fd)):
        os.dup2(fd, target)
    os.close(null_fd)
    os.close(log_fd)
    linux.set_name("grit-shim")
    namespace = request.flags["namespace"]
    with log.about(namespace=namespace, id=request.flags["id"]):
        server.run(
            listener, namespace=namespace, events_address=request.environment["TTRPC_ADDRESS"]
        )


def find(request: Request) -> Place:
    """The place of the shim for a bundle; its socket is bound here if no shim serves there."""
    annotations = config_json.read(request.directory).get("annotations") or {}
    flags = request.flags
    group = next((annotations[key] for key in GROUP_ANNOTATIONS if key in annotations), flags["id"])
    path = sockets.path_of(flags.get("address", ""), flags["namespace"], group)
    place = Place(f"unix://{path}", sockets.claim(path))
    bundle.write_address(request.directory, place.address)
    return place


def adopt_caller_context(request: Request) -> None:
    """Take the context of a child of the caller: directory, environment, cgroup, OOM score."""
    os.chdir(request.directory)
    os.environ.clear()
    os.environ.update(request.environment)
    options = _runtime_options(request)
    if options.shim_cgroup:
        cgroup.enter(options.shim_cgroup)
    else:
        cgroup.enter_that_of(request.pid)
    with open(f"/proc/{request.pid}/oom_score_adj", encoding="ascii") as file:
        score = min(int(file.read()) + 1, OOM_SCORE_ADJ_MAX)
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(score))


def _runtime_options(request: Request) -> runtime_options.RuntimeOptions:
    """Options that containerd has written to standard input, in either form.

    From 2.3 on they are an extension of BootstrapParams. Each form also parses as the other, so
    input is taken for BootstrapParams only if it repeats the flags.
    """
    try:
        parameters = bootstrap_pb2.BootstrapParams.FromString(request.stdin)
        named = (parameters.instance_id, parameters.namespace)
        if named == (request.flags["id"], request.flags["namespace"]):
            for extension in parameters.extensions:
                return runtime_options.decode(extension.value)
            return runtime_options.RuntimeOptions()
    except DecodeError:
        pass
    try:
        return runtime_options.decode(Any.FromString(request.stdin))
    except DecodeError as error:
        raise InvalidArgumentError(f"standard input: {error}") from None
