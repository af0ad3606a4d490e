"""What containerd asks of a shim's program: to start a shim, to clean up after one, to describe it.

Spec: containerd v2.1.9 core/runtime/v2/README.md, pkg/shim/shim.go.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress

from google.protobuf.any_pb2 import Any

from grit_runtime.errors import InvalidArgumentError
from grit_runtime.host import mounts, process
from grit_runtime.host.process import new_token
from grit_runtime.model import runtime_options, shim_flags
from grit_runtime.proto import containerd_types_pb2 as types
from grit_runtime.proto import task_pb2
from grit_runtime.shim import bundle
from grit_runtime.wire.well_known import timestamp

VERSION = "0.1.0"  # as in pyproject.toml
RUNTIME_NAME = "io.containerd.grit.v1"
FEATURES_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


def run(launcher: str, words: list[str]) -> bytes:
    """The answer to containerd's *words*; `zygote` is an action of our own, and never ends."""
    flags, action = shim_flags.parse(words)
    if "v" in flags or "version" in flags:
        return f"containerd-shim-grit-v1:\n  Version:  {VERSION}\n".encode()
    if "info" in flags:
        return _info()
    if action == "delete":
        return _delete(flags["namespace"], flags["id"])
    if action in ("start", "zygote"):
        from grit_runtime.shim import start, zygote  # noqa: PLC0415  they bring all of a shim

        if action == "zygote":
            zygote.run()
        zygote.launch(launcher)
        return start.here(words)
    raise InvalidArgumentError(f"action {action!r} is unknown, expected start or delete")


def _delete(namespace: str, container_id: str) -> bytes:
    """Take away what a container left whose shim has died, and say that it was killed."""
    bundle_dir = f"{os.path.dirname(os.getcwd())}/{container_id}"
    options = bundle.read_options(bundle_dir)
    argv = options.argv(namespace, f"{bundle_dir}/log.json", "delete", "--force", container_id)
    process.run(argv, token=new_token())
    mounts.unmount_all(f"{bundle_dir}/rootfs")
    return task_pb2.DeleteResponse(
        pid=_init_pid(bundle_dir),
        exit_status=128 + signal.SIGKILL,
        exited_at=timestamp(time.time_ns()),
    ).SerializeToString()


def _init_pid(bundle_dir: str) -> int:
    """The container's first process, 0 if it never had one."""
    with suppress(FileNotFoundError), open(f"{bundle_dir}/init.pid", encoding="ascii") as file:
        return int(file.read())
    return 0


def _info() -> bytes:
    """What this runtime is called and can do, as runc says."""
    options = Any.FromString(sys.stdin.buffer.read())
    program = runtime_options.decode(options).binary_name
    features = process.run([program, "features"], token=new_token())
    return types.RuntimeInfo(
        name=RUNTIME_NAME,
        version=types.RuntimeVersion(version=VERSION),
        options=options,
        features=Any(type_url=FEATURES_TYPE, value=features),
    ).SerializeToString()
