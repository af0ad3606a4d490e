"""The Task service: decodes each request of containerd and calls its container.

Served under the names of both versions, whose messages are the same. Source of the semantics:
containerd v2.1.9 api/runtime/task/v3/shim.proto, cmd/containerd-shim-runc-v2/task/service.go.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import Any

from google.protobuf.empty_pb2 import Empty

from grit_runtime.errors import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from grit_runtime.host import cgroup, cgroup_stats, mounts
from grit_runtime.model import runtime_options
from grit_runtime.proto import containerd_types_pb2, runc_options_pb2, task_pb2, task_types_pb2
from grit_runtime.shim import bundle
from grit_runtime.shim.container import Container
from grit_runtime.shim.stdio import Names
from grit_runtime.shim.threads import in_thread
from grit_runtime.shim.transport import Method
from grit_runtime.wire.well_known import pack, timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from grit_runtime.shim.runtime import Shim

SERVICES = ("containerd.task.v2.Task", "containerd.task.v3.Task")


class Task:
    """The containers of one shim, by the requests about them; *shut_down* ends the shim."""

    def __init__(self, shim: Shim, shut_down: Callable[[], None]) -> None:
        self._shim = shim
        self._shut_down = shut_down
        self._containers: dict[str, Container] = {}
        self._is_ending = False

    @property
    def methods(self) -> dict[tuple[str, str], Method]:
        """What the shim serves, by service and method."""
        table = {
            "Create": Method(task_pb2.CreateTaskRequest, self._create),
            "Start": Method(task_pb2.StartRequest, self._start),
            "State": Method(task_pb2.StateRequest, self._state),
            "Delete": Method(task_pb2.DeleteRequest, self._delete),
            "Pids": Method(task_pb2.PidsRequest, self._pids),
            "Pause": Method(task_pb2.PauseRequest, self._pause),
            "Resume": Method(task_pb2.ResumeRequest, self._resume),
            "Checkpoint": Method(task_pb2.CheckpointTaskRequest, self._checkpoint),
            "Kill": Method(task_pb2.KillRequest, self._kill),
            "Exec": Method(task_pb2.ExecProcessRequest, self._exec),
            "ResizePty": Method(task_pb2.ResizePtyRequest, self._resize_pty),
            "CloseIO": Method(task_pb2.CloseIORequest, self._close_io),
            "Update": Method(task_pb2.UpdateTaskRequest, self._update),
            "Wait": Method(task_pb2.WaitRequest, self._wait, only_waits=True),
            "Stats": Method(task_pb2.StatsRequest, self._stats),
            "Connect": Method(task_pb2.ConnectRequest, self._connect),
            "Shutdown": Method(task_pb2.ShutdownRequest, self._shutdown),
        }
        return {(service, name): method for service in SERVICES for name, method in table.items()}

    async def _create(self, request: task_pb2.CreateTaskRequest) -> task_pb2.CreateTaskResponse:
        if self._is_ending:
            raise UnavailableError("this shim is ending")
        if request.id in self._containers:
            raise AlreadyExistsError(f"container {request.id} exists already")
        options = runtime_options.decode(request.options)
        container = Container(
            self._shim,
            _file_name(request.id),
            request.bundle,
            _names(request),
            options,
            checkpoint_dir=request.checkpoint or options.criu_image_path,
        )
        self._containers[request.id] = container
        try:
            bundle.write_options(request.bundle, options)
            await container.create([_mount(mount) for mount in request.rootfs])
        except BaseException:
            del self._containers[request.id]
            raise
        return task_pb2.CreateTaskResponse(pid=container.init.pid)

    async def _start(self, request: task_pb2.StartRequest) -> task_pb2.StartResponse:
        return task_pb2.StartResponse(
            pid=await self._container_of(request.id).start(request.exec_id)
        )

    async def _state(self, request: task_pb2.StateRequest) -> task_pb2.StateResponse:
        container = self._container_of(request.id)
        process = container.process(request.exec_id)
        return task_pb2.StateResponse(
            id=request.id,
            exec_id=request.exec_id,
            bundle=container.bundle_dir,
            pid=process.pid,
            status=container.status_of(process),  # type: ignore[arg-type]
            exit_status=process.exit.status,
            exited_at=timestamp(process.exit.at_ns),
            **process.streams.names._asdict(),
        )

    async def _delete(self, request: task_pb2.DeleteRequest) -> task_pb2.DeleteResponse:
        container = self._container_of(request.id)
        process = await container.delete(request.exec_id)
        if not request.exec_id:
            bundle.forget_options(container.bundle_dir)
            del self._containers[request.id]
        return task_pb2.DeleteResponse(
            pid=process.pid,
            exit_status=process.exit.status,
            exited_at=timestamp(process.exit.at_ns),
        )

    async def _pids(self, request: task_pb2.PidsRequest) -> task_pb2.PidsResponse:
        container = self._container_of(request.id)
        execs = {process.pid: process.id for process in container.execs.values()}
        processes = []
        # A restarted containerd takes a shim without processes for a leaked one and ends it, which
        # loses the exit status; so the first process is listed until it is deleted.
        inside = await in_thread(cgroup.pids, container.cgroup_path)
        for pid in sorted(inside | {container.init.pid}):
            info = task_types_pb2.ProcessInfo(pid=pid)
            if pid in execs:
                details = runc_options_pb2.ProcessDetails(exec_id=execs[pid])
                info.info.CopyFrom(pack(details))
            processes.append(info)
        return task_pb2.PidsResponse(processes=processes)

    async def _pause(self, request: task_pb2.PauseRequest) -> Empty:
        await self._container_of(request.id).pause()
        return Empty()

    async def _resume(self, request: task_pb2.ResumeRequest) -> Empty:
        await self._container_of(request.id).resume()
        return Empty()

    async def _checkpoint(self, request: task_pb2.CheckpointTaskRequest) -> Empty:
        options = runtime_options.decode_checkpoint(request.options)
        await self._container_of(request.id).checkpoint(request.path, options)
        return Empty()

    async def _kill(self, request: task_pb2.KillRequest) -> Empty:
        container = self._container_of(request.id)
        if request.signal > signal.SIGRTMAX:
            raise InvalidArgumentError(f"signal {request.signal}: there is none, expected 1 to 64")
        await container.kill(request.exec_id, request.signal, everyone=request.all)
        return Empty()

    async def _exec(self, request: task_pb2.ExecProcessRequest) -> Empty:
        container = self._container_of(request.id)
        names = _names(request)
        spec = _process_spec(request)
        container.add_exec(_file_name(request.exec_id), names, {**spec, "terminal": names.terminal})
        return Empty()

    async def _resize_pty(self, request: task_pb2.ResizePtyRequest) -> Empty:
        self._container_of(request.id).resize(request.exec_id, request.width, request.height)
        return Empty()

    async def _close_io(self, request: task_pb2.CloseIORequest) -> Empty:
        if request.stdin:
            self._container_of(request.id).process(request.exec_id).streams.close_input()
        return Empty()

    async def _update(self, request: task_pb2.UpdateTaskRequest) -> Empty:
        await self._container_of(request.id).update(request.resources.value)
        return Empty()

    async def _wait(self, request: task_pb2.WaitRequest) -> task_pb2.WaitResponse:
        process = self._container_of(request.id).process(request.exec_id)
        ended = await asyncio.shield(process.exited)
        return task_pb2.WaitResponse(exit_status=ended.status, exited_at=timestamp(ended.at_ns))

    async def _stats(self, request: task_pb2.StatsRequest) -> task_pb2.StatsResponse:
        container = self._container_of(request.id)
        stats = await in_thread(cgroup_stats.read, container.cgroup_path)
        return task_pb2.StatsResponse(stats=pack(stats))

    async def _connect(self, request: task_pb2.ConnectRequest) -> task_pb2.ConnectResponse:
        known = self._containers.get(request.id)
        task_pid = known.init.pid if known else 0
        return task_pb2.ConnectResponse(shim_pid=os.getpid(), task_pid=task_pid)

    async def _shutdown(self, _request: task_pb2.ShutdownRequest) -> Empty:
        if not self._containers:
            self._is_ending = True
            self._shut_down()
        return Empty()

    def _container_of(self, container_id: str) -> Container:
        if container_id not in self._containers:
            raise NotFoundError(f"container {container_id}: not found")
        return self._containers[container_id]


def _file_name(id_: str) -> str:
    """*id_*, if it may be part of a file's name in the bundle."""
    if not id_ or "/" in id_ or id_.startswith("."):
        raise InvalidArgumentError(f"id {id_!r} cannot be the name of a file")
    return id_


def _process_spec(request: task_pb2.ExecProcessRequest) -> dict[str, Any]:
    """OCI's ``process``."""
    try:
        spec = json.loads(request.spec.value)
    except ValueError as error:
        raise InvalidArgumentError(f"exec {request.exec_id}: its spec: {error}") from None
    if not isinstance(spec, dict):
        raise InvalidArgumentError(f"exec {request.exec_id}: its spec: expected an object")
    return spec


def _mount(mount: containerd_types_pb2.Mount) -> mounts.Mount:
    return mounts.Mount(mount.type, mount.source, mount.target, list(mount.options))


def _names(request: task_pb2.CreateTaskRequest | task_pb2.ExecProcessRequest) -> Names:
    return Names(request.stdin, request.stdout, request.stderr, request.terminal)
