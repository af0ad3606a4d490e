"""One container: its first process, its execs, and their states.

Every change of state is made here, and published to containerd as an event. A container's events
come in this order: create, start, exit, delete; the exits of its execs come before that of the
first process. Source of the semantics: containerd v2.1.9 cmd/containerd-shim-runc-v2 (task/,
process/).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from contextlib import nullcontext, suppress
from typing import Any

from grit_runtime.errors import (
    AlreadyExistsError,
    CommandError,
    FailedPreconditionError,
    NotFoundError,
)
from grit_runtime.host import cgroup, config_json, mounts
from grit_runtime.proto import containerd_types_pb2 as types
from grit_runtime.proto import task_events_pb2 as events
from grit_runtime.shim import runtime
from grit_runtime.shim.oom import OomWatch
from grit_runtime.shim.runtime import Runtime
from grit_runtime.shim.task_process import (
    CREATED,
    DELETED,
    PAUSED,
    PAUSING,
    RUNNING,
    STOPPED,
    WORDS,
    Process,
)
from grit_runtime.shim.threads import in_thread
from grit_runtime.wire.well_known import timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from grit_runtime.model.runtime_options import RuntimeOptions
    from grit_runtime.proto.runc_options_pb2 import CheckpointOptions
    from grit_runtime.shim.children import Exit
    from grit_runtime.shim.runtime import Shim
    from grit_runtime.shim.stdio import Names

DRAIN_TIMEOUT_S = 10

# runc's errors for a container whose processes have ended (libcontainer/container_linux.go).
_FINISHED = ("process already finished", "container not running", "no such process")


class Container:
    """A container of this shim; `start` restores it from *checkpoint_dir* if that is given."""

    def __init__(
        self,
        shim: Shim,
        id_: str,
        bundle_dir: str,
        names: Names,
        options: RuntimeOptions,
        *,
        checkpoint_dir: str = "",
    ) -> None:
        spec = config_json.read(bundle_dir)
        self.shim = shim
        self.id = id_
        self.bundle_dir = bundle_dir
        self.options = options
        self.runtime = Runtime(shim, id_, bundle_dir, options)
        self.checkpoint_dir = checkpoint_dir
        self.init = Process("", names, {})
        self.execs: dict[str, Process] = {}
        self.cgroup_path = ""
        self._namespaces = spec.get("linux", {}).get("namespaces") or []
        self._changing = asyncio.Lock()
        self._killing = asyncio.Lock()  # a kill ends before the exit that it brings, and the delete
        self._ending = False
        self._watches: set[asyncio.Task[None]] = set()
        self._oom = OomWatch(self._publish_oom)

    def process(self, exec_id: str) -> Process:
        """The process with the id of an exec, or the first process for ""."""
        if not exec_id:
            return self.init
        if exec_id not in self.execs:
            raise NotFoundError(f"container {self.id}: no exec process {exec_id}")
        return self.execs[exec_id]

    def status_of(self, process: Process) -> int:
        """A process's state for clients; in a paused container all processes are paused."""
        if process.status == RUNNING and self.init.status in (PAUSED, PAUSING):
            return self.init.status
        return process.status

    async def create(self, rootfs: Sequence[mounts.Mount]) -> None:
        """Mount the root filesystem and make the container; it runs nothing yet.

        A container to be restored from *checkpoint_dir* has no process until it is started.
        """
        os.makedirs(self._rootfs_dir, mode=0o711, exist_ok=True)
        async with self._changing, self.init.starting:
            try:
                for mount in rootfs:
                    await in_thread(mounts.mount, mount, self._rootfs_dir)
                if not self.checkpoint_dir:
                    flags = self.options.create_flags
                    await self._make("create", "--bundle", self.bundle_dir, *flags)
            except BaseException:
                if os.path.exists(f"{self.bundle_dir}/init.pid"):  # made, but not ours to keep
                    with suppress(CommandError):
                        await self.runtime.call("delete", "--force", self.id)
                await self.init.streams.close()
                await in_thread(mounts.unmount_all, self._rootfs_dir)
                self.init.status = DELETED  # for a delete that has waited
                raise
            self.shim.publish(
                events.TaskCreate(
                    container_id=self.id,
                    bundle=self.bundle_dir,
                    rootfs=[types.Mount(**mount._asdict()) for mount in rootfs],
                    io=events.TaskIO(**self.init.streams.names._asdict()),
                    checkpoint=self.checkpoint_dir,
                    pid=self.init.pid,
                )
            )

    async def start(self, exec_id: str) -> int:
        """Run the process; its pid."""
        process = self.process(exec_id)
        changing = self._changing if process is self.init else nullcontext()
        async with changing, process.starting:
            self._expect(process, CREATED, doing="start")
            if process is self.init:
                await self._start_init()
            else:
                await self._start_exec(process)
        return process.pid

    def add_exec(self, exec_id: str, names: Names, spec: dict[str, Any]) -> None:
        """Add a process for a later start; *spec* is OCI's ``process``."""
        if exec_id in self.execs:
            raise AlreadyExistsError(f"container {self.id}: exec process {exec_id} exists already")
        if self.init.pid == 0 and self.init.status == CREATED:
            raise FailedPreconditionError(f"cannot exec in container {self.id}: it is not restored")
        self._expect(self.init, CREATED, RUNNING, doing="exec in")
        self.execs[exec_id] = Process(exec_id, names, spec)
        self.shim.publish(events.TaskExecAdded(container_id=self.id, exec_id=exec_id))

    async def delete(self, exec_id: str) -> Process:
        """Delete a process that has ended or never ran; with the first one, the whole container.

        Waits for output that has not reached the client yet.
        """
        process = self.process(exec_id)
        if process is self.init:
            async with self._changing:
                await self._delete_init()
            return process
        async with process.starting:
            self._expect(process, CREATED, STOPPED, doing="delete")
            process.status = DELETED
            del self.execs[exec_id]
        await process.streams.drain(DRAIN_TIMEOUT_S)
        await process.streams.close()
        return process

    async def kill(self, exec_id: str, number: int, *, everyone: bool) -> None:
        """Send signal *number*; NotFoundError if the process has ended."""
        process = self.process(exec_id)
        async with self._killing if process is self.init else process.starting:
            if process.status in (STOPPED, DELETED) or (process.reaped and process.reaped.done()):
                raise NotFoundError("process already finished")
            if process is self.init:
                await self._kill_init(number, everyone=everyone)
            elif process.pid:
                os.kill(process.pid, number)
            else:
                raise FailedPreconditionError(f"exec process {exec_id} has not been started")

    def resize(self, exec_id: str, width: int, height: int) -> None:
        """Give a process's terminal its size; nothing for one without a terminal."""
        process = self.process(exec_id)
        if exec_id:
            self._expect(process, CREATED, RUNNING, doing="resize")
        process.streams.resize(width, height)

    async def pause(self) -> None:
        async with self._changing:
            self._expect(self.init, RUNNING, doing="pause")
            self.init.status = PAUSING  # which refuses starts from now on
            await self._wait_for_starts()  # no exec may be frozen while runc starts it
            try:
                await self.runtime.call("pause", self.id)
            except BaseException:
                self._leave(PAUSING, RUNNING)
                raise
            self._leave(PAUSING, PAUSED)
            self.shim.publish(events.TaskPaused(container_id=self.id))

    async def resume(self) -> None:
        async with self._changing:
            self._expect(self.init, PAUSED, doing="resume")
            await self.runtime.call("resume", self.id)
            self._leave(PAUSED, RUNNING)
            self.shim.publish(events.TaskResumed(container_id=self.id))

    async def checkpoint(self, path: str, options: CheckpointOptions) -> None:
        """Dump the container into *path*; the runtime suspends its GPU memory first."""
        work_dir = options.work_path or f"{self.bundle_dir}/work/criu-work"
        async with self._changing:
            self._expect(self.init, RUNNING, PAUSED, doing="checkpoint")
            await in_thread(_make_private_dir, work_dir)
            try:
                flags = [
                    "--image-path",
                    path,
                    "--work-path",
                    work_dir,
                    *runtime.dump_flags(options),
                ]
                await self.runtime.call("checkpoint", *flags, self.id)
            except CommandError as error:
                log_path = f"{self.bundle_dir}/criu-dump.log"
                with suppress(FileNotFoundError):
                    await in_thread(shutil.copyfile, f"{work_dir}/dump.log", log_path)
                    raise CommandError(f"{error} path= {log_path}") from None
                raise
            finally:
                if not options.work_path:
                    await in_thread(shutil.rmtree, work_dir)

    async def update(self, resources: bytes) -> None:
        """Set limits; *resources* is OCI's ``linux.resources`` as JSON."""
        path = f"{self.bundle_dir}/resources.json"
        async with self._changing:
            self._expect(self.init, CREATED, RUNNING, PAUSED, doing="update")
            try:
                with open(path, "wb") as file:
                    file.write(resources)
                await self.runtime.call("update", "--resources", path, self.id)
            finally:
                os.unlink(path)

    @property
    def _rootfs_dir(self) -> str:
        return f"{self.bundle_dir}/rootfs"

    def _expect(self, process: Process, *statuses: int, doing: str) -> None:
        what = f"exec process {process.id}" if process.id else f"container {self.id}"
        if process.status == DELETED:  # that happened while the request waited
            raise NotFoundError(f"{what}: not found")
        if process.status not in statuses:
            word = WORDS[self.status_of(process)]
            raise FailedPreconditionError(f"cannot {doing} {what}: it is {word}")

    def _leave(self, status: int, for_: int) -> None:
        """Change the state, unless the container has ended meanwhile."""
        if self.init.status == status:
            self.init.status = for_

    async def _start_init(self) -> None:
        if self.checkpoint_dir:
            await self._make(
                *("restore", "--detach", "--no-subreaper", "--bundle", self.bundle_dir),
                *("--image-path", self.checkpoint_dir),
                *("--work-path", self.options.criu_work_path or f"{self.bundle_dir}/work"),
                *self.options.restore_flags,
                *("--tcp-established", "--ext-unix-sk", "--file-locks"),  # whatever was dumped with
            )
        else:
            await self.runtime.call("start", self.id)
        self.init.status = RUNNING
        self.shim.publish(events.TaskStart(container_id=self.id, pid=self.init.pid))

    async def _start_exec(self, process: Process) -> None:
        if process.exited.done():
            raise FailedPreconditionError(f"exec process {process.id} could not be started before")
        if self.init.status not in (CREATED, RUNNING) or self._ending:
            raise FailedPreconditionError(f"container {self.id} init process is not running")
        stem = f"{self.bundle_dir}/{process.id}"
        with open(f"{stem}.json", "w", encoding="utf-8") as file:
            json.dump(process.spec, file)
        try:
            command = ("exec", "--detach", "--process", f"{stem}.json")
            self._watch(process, await self.runtime.launch(process, *command, stem=stem))
        except BaseException:
            process.give_up()
            raise
        finally:
            for suffix in ("json", "pid", "log"):
                with suppress(FileNotFoundError):
                    os.unlink(f"{stem}.{suffix}")
        process.status = RUNNING
        self.shim.publish(
            events.TaskExecStarted(container_id=self.id, exec_id=process.id, pid=process.pid)
        )

    async def _delete_init(self) -> None:
        init = self.init
        self._expect(init, CREATED, STOPPED, doing="delete")
        try:
            async with self._killing:
                await self.runtime.call("delete", *["--force"] * (init.status == CREATED), self.id)
        except CommandError as error:
            if "does not exist" not in str(error):  # runc forgets what it dumped for good
                raise
        if init.pid:
            await asyncio.shield(init.exited)
        await init.streams.drain(DRAIN_TIMEOUT_S)
        await init.streams.close()
        await in_thread(mounts.unmount_all, self._rootfs_dir)
        init.status = DELETED
        self.shim.publish(
            events.TaskDelete(
                container_id=self.id,
                pid=init.pid,
                exit_status=init.exit.status,
                exited_at=timestamp(init.exit.at_ns),
            )
        )

    async def _kill_init(self, number: int, *, everyone: bool) -> None:
        try:
            await self.runtime.call("kill", *["--all"] * everyone, self.id, str(number))
        except CommandError as error:
            if any(word in str(error) for word in _FINISHED):
                raise NotFoundError("process already finished") from None
            if "does not exist" in str(error):
                raise NotFoundError(f"no such container {self.id}") from None
            raise

    async def _make(self, verb: str, *arguments: str) -> None:
        """Make the first process by a command of the runtime."""
        stem = f"{self.bundle_dir}/init"
        self._watch(self.init, await self.runtime.launch(self.init, verb, *arguments, stem=stem))
        with suppress(NotFoundError):  # it has ended already
            self.cgroup_path = cgroup.of(self.init.pid)
            await self._oom.watch(self.cgroup_path)

    def _watch(self, process: Process, ended: asyncio.Future[Exit]) -> None:
        watch = asyncio.create_task(self._await_exit(process, ended))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)

    async def _await_exit(self, process: Process, ended: asyncio.Future[Exit]) -> None:
        """Wait for the end of a process, and publish it in the right order."""
        exit_ = await ended
        if process is self.init:
            self._ending = True
            if process.status == PAUSED:  # other processes would stay frozen
                with suppress(CommandError):
                    await self.runtime.call("resume", self.id)
            await self._end_others()
        async with self._killing if process is self.init else nullcontext(), process.starting:
            process.finish(exit_)
        self.shim.publish(
            events.TaskExit(
                container_id=self.id,
                id=process.id or self.id,
                pid=process.pid,
                exit_status=exit_.status,
                exited_at=timestamp(exit_.at_ns),
            )
        )
        await process.streams.hang_up()

    async def _end_others(self) -> None:
        """After the first process has ended, kill all others and wait for them."""
        self._oom.close()
        await self._wait_for_starts()  # later starts are refused
        if not any(one["type"] == "pid" and not one.get("path") for one in self._namespaces):
            with suppress(CommandError):  # no process is left
                await self.runtime.call("kill", "--all", self.id, str(int(signal.SIGKILL)))
        for process in list(self.execs.values()):
            if process.status == RUNNING:
                await asyncio.shield(process.exited)

    async def _wait_for_starts(self) -> None:
        """Wait until the runtime has finished starting execs."""
        for process in list(self.execs.values()):
            async with process.starting:
                pass

    def _publish_oom(self) -> None:
        self.shim.publish(events.TaskOOM(container_id=self.id))


def _make_private_dir(path: str) -> None:
    os.makedirs(path, mode=0o700, exist_ok=True)
