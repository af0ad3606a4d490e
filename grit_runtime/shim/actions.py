"""The actions of a shim's program: starting a shim, cleaning up after one, describing the runtime.

Spec: containerd v2.1.9 core/runtime/v2/README.md, pkg/shim/shim.go.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from google.protobuf.any_pb2 import Any

from grit_runtime.errors import InvalidArgumentError
from grit_runtime.host import mounts, process
from grit_runtime.host.process import new_token
from grit_runtime.model import runtime_options
from grit_runtime.proto import containerd_types_pb2 as types
from grit_runtime.proto import task_pb2
from grit_runtime.shim import bundle, sockets
from grit_runtime.version import VERSION
from grit_runtime.wire.well_known import timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.shim.request import Request

RUNTIME_NAME = "io.containerd.grit.v1"
FEATURES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


def answer(request: Request) -> bytes:
    """The answer to every action but `start`, which leaves a shim behind."""
    if "v" in request.flags or "version" in request.flags:
        return f"containerd-shim-grit-v1:\n  Version:  {VERSION}\n".encode()
    if "info" in request.flags:
        return _info(request.stdin)
    if request.action == "delete":
        return _delete(request)
    raise InvalidArgumentError(f"action {request.action!r} is unknown, expected start or delete")


def _delete(request: Request) -> bytes:
    """Remove what a container whose shim has died left behind, and report that it was killed.

    containerd calls this for every shim that has gone; most have left nothing.
    """
    namespace, container_id = request.flags["namespace"], request.flags["id"]
    bundle_dir = f"{os.path.dirname(request.directory)}/{container_id}"
    address = bundle.read_address(bundle_dir)
    if address is not None:
        _clean_up(bundle_dir, address.removeprefix("unix://"), namespace, container_id)
    return task_pb2.DeleteResponse(
        pid=_init_pid(bundle_dir),
        exit_status=128 + signal.SIGKILL,
        exited_at=timestamp(time.time_ns()),
    ).SerializeToString()


def _clean_up(bundle_dir: str, socket_path: str, namespace: str, container_id: str) -> None:
    options = bundle.read_options(bundle_dir)
    if options is not None:
        if not sockets.serves(socket_path):
            process.wait_gone(sockets.token(socket_path), deadline_s=0)
        argv = options.argv(namespace, f"{bundle_dir}/log.json", "delete", "--force", container_id)
        process.run(argv, token=new_token())
        mounts.unmount_all(f"{bundle_dir}/rootfs")
    sockets.remove_dead(socket_path)


def _init_pid(bundle_dir: str) -> int:
    """The container's first process, 0 if it never had one."""
    with suppress(FileNotFoundError), open(f"{bundle_dir}/init.pid", encoding="ascii") as file:
        return int(file.read())
    return 0


def _info(options_bytes: bytes) -> bytes:
    """The name and the features of this runtime, as runc reports them."""
    options = Any.FromString(options_bytes)
    program = runtime_options.decode(options).binary_name
    features = process.run([program, "features"], token=new_token())
    return types.RuntimeInfo(
        name=RUNTIME_NAME,
        version=types.RuntimeVersion(version=VERSION),
        options=options,
        features=Any(type_url=FEATURES_TYPE, value=features),
    ).SerializeToString()
