"""Starts a shim: finds or binds its socket, takes the caller's place, and serves in the background.

One shim serves the containers of a pod: the first `start` begins it, the others find its socket.
Spec: containerd v2.1.9 cmd/containerd-shim-runc-v2/manager/manager_linux.go.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError

from grit_runtime.errors import InvalidArgumentError
from grit_runtime.host import cgroup, config_json, linux
from grit_runtime.model import runtime_options
from grit_runtime.proto import bootstrap_pb2
from grit_runtime.shim import bundle, server, sockets

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import NoReturn

    from grit_runtime.shim.request import Request

GROUP_ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")
OOM_SCORE_ADJ_MAX = 1000


class Place(NamedTuple):
    """Where a shim is reached; *listener* is None when another one serves there already."""

    address: str
    listener: socket.socket | None


def here(request: Request) -> bytes:
    """Start the shim from this process, as one that outlives it; the answer for containerd."""
    place = find(request)
    if place.listener is not None:
        take_place(request)
        if os.fork() == 0:
            serve(request, place.listener)
    return place.address.encode()


def serve(request: Request, listener: socket.socket) -> NoReturn:
    """Be the shim, apart from whoever has started it."""
    os.setsid()
    null_fd = os.open(os.devnull, os.O_RDWR)
    # containerd reads from the fifo, and may come and go: held open both ways it never ends.
    log_fd = os.open(f"{request.directory}/log", os.O_RDWR | os.O_NONBLOCK)
    for target, fd in enumerate((null_fd, null_fd, log_fd)):
        os.dup2(fd, target)
    os.close(null_fd)
    os.close(log_fd)
    linux.set_name("grit-shim")
    server.run(
        listener,
        namespace=request.flags["namespace"],
        events_address=request.environment["TTRPC_ADDRESS"],
    )


def find(request: Request) -> Place:
    """The place of the shim for a bundle, bound by us if nobody serves there."""
    annotations = config_json.read(request.directory).get("annotations") or {}
    flags = request.flags
    group = next((annotations[key] for key in GROUP_ANNOTATIONS if key in annotations), flags["id"])
    path = sockets.path_of(flags.get("address", ""), flags["namespace"], group)
    place = Place(f"unix://{path}", sockets.claim(path))
    bundle.write_address(request.directory, place.address)
    return place


def take_place(request: Request) -> None:
    """Be where a child of the caller would be: directory, environment, cgroup, OOM score."""
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
    """Options that containerd has written to standard input, in whichever form.

    From 2.3 on they are an extension of BootstrapParams, which reads as an Any too, and the other
    way round: only what repeats the flags is taken for the former.
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
