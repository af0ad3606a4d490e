"""One container: its first process, those that exec added, and what becomes of them.

Every change of state is here, and with it the event that containerd gets. A container's events
come in this order: create, start, exit, delete; the exits of its execs before that of the first
process. Source of the semantics: containerd v2.1.9 cmd/containerd-shim-runc-v2 (task/, process/).
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from contextlib import nullcontext, suppress
from typing import Any, NamedTuple

from grit_runtime.errors import (
    AlreadyExistsError,
    CommandError,
    FailedPreconditionError,
    NotFoundError,
)
from grit_runtime.host import cgroup, config_json, mounts, runc
from grit_runtime.proto import containerd_types_pb2 as types
from grit_runtime.proto import task_events_pb2 as events
from grit_runtime.shim.children import Exit
from grit_runtime.shim.oom import OomWatch
from grit_runtime.shim.stdio import Streams, console_socket, receive_console
from grit_runtime.wire.well_known import timestamp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from google.protobuf.message import Message

    from grit_runtime.model.runtime_options import RuntimeOptions
    from grit_runtime.proto.runc_options_pb2 import CheckpointOptions
    from grit_runtime.shim.children import Children
    from grit_runtime.shim.stdio import Names

CREATED, RUNNING, STOPPED, PAUSED, PAUSING = range(1, 6)  # containerd.v1.types.Status
DELETED = 0  # which no client sees any more
_WORDS = {CREATED: "created", RUNNING: "running", STOPPED: "stopped", PAUSED: "paused",
          PAUSING: "pausing"}  # fmt: skip

DRAIN_TIMEOUT_S = 10
FAILED_EXEC = 255

# What runc says of a container whose processes have ended (libcontainer/container_linux.go).
_FINISHED = ("process already finished", "container not running", "no such process")


class Shim(NamedTuple):
    """What the containers of one shim share."""

    namespace: str
    children: Children
    publish: Callable[[Message], None]


class Process:
    """A container's first process, whose id is "", or one that exec added as *spec* says."""

    def __init__(self, id_: str, names: Names, spec: dict[str, Any]) -> None:
        self.id = id_
        self.spec = spec
        self.streams = Streams(names)
        self.pid = 0
        self.status = CREATED
        self.starting = asyncio.Lock()  # held while it is made or started: its exit comes after
        self.reaped: asyncio.Future[Exit] | None = None  # once done, its pid may be another's
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    @property
    def exit(self) -> Exit:
        """How it ended; zeros for what has not."""
        return self.exited.result() if self.exited.done() else Exit(0, 0)

    def finish(self, ended: Exit) -> None:
        self.status = STOPPED
        self.exited.set_result(ended)


class Container:
    """A container of this shim; *checkpoint_dir* is what it is restored from when it is started."""

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
        self.checkpoint_dir = checkpoint_dir
        self.init = Process("", names, {})
        self.execs: dict[str, Process] = {}
        self.cgroup_path = ""
        self._namespaces = spec.get("linux", {}).get("namespaces") or []
        self._changing = asyncio.Lock()
        self._ending = False
        self._watches: set[asyncio.Task[None]] = set()
        self._oom = OomWatch(self._publish_oom)

    def process(self, exec_id: str) -> Process:
        """The process that a request means."""
        if not exec_id:
            return self.init
        if exec_id not in self.execs:
            raise NotFoundError(f"container {self.id}: no exec process {exec_id}")
        return self.execs[exec_id]

    def status_of(self, process: Process) -> int:
        """A process's state, as clients see it: in a paused container all are."""
        if process.status == RUNNING and self.init.status in (PAUSED, PAUSING):
            return self.init.status
        return process.status

    async def create(self, rootfs: Sequence[mounts.Mount]) -> None:
        """Mount the root filesystem and make the container; it runs nothing yet.

        What is to be restored from *checkpoint_dir* has no process until it is started.
        """
        os.makedirs(self._rootfs_dir, mode=0o711, exist_ok=True)
        async with self._changing, self.init.starting:
            try:
                for mount in rootfs:
                    mounts.mount(mount, self._rootfs_dir)
                if not self.checkpoint_dir:
                    flags = self.options.create_flags
                    await self._make("create", "--bundle", self.bundle_dir, *flags)
            except BaseException:
                if os.path.exists(f"{self.bundle_dir}/init.pid"):  # made, but not ours to keep
                    with suppress(CommandError):
                        await self.call("delete", "--force", self.id)
                await self.init.streams.close()
                mounts.unmount_all(self._rootfs_dir)
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
        """Note a process for a later start; *spec* is OCI's ``process``."""
        if exec_id in self.execs:
            raise AlreadyExistsError(f"container {self.id}: exec process {exec_id} exists already")
        self._expect(self.init, CREATED, RUNNING, doing="exec in")
        self.execs[exec_id] = Process(exec_id, names, spec)
        self.shim.publish(events.TaskExecAdded(container_id=self.id, exec_id=exec_id))

    async def delete(self, exec_id: str) -> Process:
        """Forget a process that has ended or never ran; with the first one, all of the container.

        Output that has not reached the client yet is waited for.
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
        """Send signal *number*; NotFoundError when there is nobody to get it."""
        process = self.process(exec_id)
        if process.status == STOPPED or (process.reaped and process.reaped.done()):
            raise NotFoundError("process already finished")
        if process is self.init:
            await self._kill_init(number, everyone=everyone)
        elif process.pid:
            os.kill(process.pid, number)
        else:
            raise FailedPreconditionError(f"exec process {exec_id} has not been started")

    async def pause(self) -> None:
        async with self._changing:
            self._expect(self.init, RUNNING, doing="pause")
            self.init.status = PAUSING  # which refuses starts from now on
            await self._wait_for_starts()  # none is to be frozen half made
            try:
                await self.call("pause", self.id)
            except BaseException:
                self._leave(PAUSING, RUNNING)
                raise
            self._leave(PAUSING, PAUSED)
            self.shim.publish(events.TaskPaused(container_id=self.id))

    async def resume(self) -> None:
        async with self._changing:
            self._expect(self.init, PAUSED, doing="resume")
            await self.call("resume", self.id)
            self._leave(PAUSED, RUNNING)
            self.shim.publish(events.TaskResumed(container_id=self.id))

    async def checkpoint(self, path: str, options: CheckpointOptions) -> None:
        """Dump the container into *path*; the runtime sees to its GPU memory, and to the order."""
        work_dir = options.work_path or f"{self.bundle_dir}/work/criu-work"
        async with self._changing:
            self._expect(self.init, RUNNING, PAUSED, doing="checkpoint")
            os.makedirs(work_dir, mode=0o700, exist_ok=True)
            try:
                flags = ["--image-path", path, "--work-path", work_dir, *_dump_flags(options)]
                await self.call("checkpoint", *flags, self.id)
            except CommandError as error:
                log_path = f"{self.bundle_dir}/criu-dump.log"
                with suppress(FileNotFoundError):
                    shutil.copyfile(f"{work_dir}/dump.log", log_path)
                    raise CommandError(f"{error} path= {log_path}") from None
                raise
            finally:
                if not options.work_path:
                    shutil.rmtree(work_dir)

    async def update(self, resources: bytes) -> None:
        """Set limits; *resources* is OCI's ``linux.resources`` as JSON."""
        path = f"{self.bundle_dir}/resources.json"
        async with self._changing:
            try:
                with open(path, "wb") as file:
                    file.write(resources)
                await self.call("update", "--resources", path, self.id)
            finally:
                os.unlink(path)

    async def call(self, verb: str, *arguments: str) -> None:
        """Run a command of the runtime; CommandError with its last line."""
        argv = self._argv(f"{self.bundle_dir}/log.json", verb, *arguments)
        done = await self.shim.children.run(argv)
        if done.status != 0:
            lines = done.err.strip().splitlines() or [f"ended {done.status} and said nothing"]
            raise CommandError(f"{self.options.binary_name} {verb}: {lines[-1]}")

    def _argv(self, log_path: str, *command: str) -> list[str]:
        return self.options.argv(self.shim.namespace, log_path, *command)

    @property
    def _rootfs_dir(self) -> str:
        return f"{self.bundle_dir}/rootfs"

    def _expect(self, process: Process, *statuses: int, doing: str) -> None:
        what = f"exec process {process.id}" if process.id else f"container {self.id}"
        if process.status == DELETED:  # while the request waited for its turn
            raise NotFoundError(f"{what}: not found")
        if process.status not in statuses:
            word = _WORDS[self.status_of(process)]
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
            await self.call("start", self.id)
        self.init.status = RUNNING
        self.shim.publish(events.TaskStart(container_id=self.id, pid=self.init.pid))

    async def _start_exec(self, process: Process) -> None:
        if self.init.status != RUNNING or self._ending:
            raise FailedPreconditionError(f"container {self.id} init process is not running")
        stem = f"{self.bundle_dir}/{process.id}"
        with open(f"{stem}.json", "w", encoding="utf-8") as file:
            json.dump(process.spec, file)
        try:
            command = ("exec", "--detach", "--process", f"{stem}.json")
            await self._launch(process, *command, stem=stem)
        except BaseException:
            process.finish(Exit(FAILED_EXEC, time.time_ns()))
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
            await self.call("delete", *["--force"] * (init.status == CREATED), self.id)
        except CommandError as error:
            if "does not exist" not in str(error):  # runc forgets what it dumped for good
                raise
        if init.pid:
            await asyncio.shield(init.exited)
        await init.streams.drain(DRAIN_TIMEOUT_S)
        await init.streams.close()
        mounts.unmount_all(self._rootfs_dir)
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
            await self.call("kill", *["--all"] * everyone, self.id, str(number))
        except CommandError as error:
            if any(word in str(error) for word in _FINISHED):
                raise NotFoundError("process already finished") from None
            if "does not exist" in str(error):
                raise NotFoundError(f"no such container {self.id}") from None
            raise

    async def _make(self, verb: str, *arguments: str) -> None:
        """Have the runtime make the first process."""
        await self._launch(self.init, verb, *arguments, stem=f"{self.bundle_dir}/init")
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended already
            self.cgroup_path = cgroup.of(self.init.pid)
            self._oom.watch(self.cgroup_path)

    async def _launch(self, process: Process, verb: str, *arguments: str, stem: str) -> None:
        """Run a command that leaves *process* behind, our child from then on, with its streams.

        Its standard error is the container's, so that its reason is looked for in its log.
        """
        log_path = f"{stem}.log"
        words = [*arguments, "--pid-file", f"{stem}.pid"]
        identity = {"CONTAINER_ID": self.id, "CONTAINER_NAMESPACE": self.shim.namespace}
        with self.shim.children.expecting():
            if process.streams.names.terminal:
                with console_socket() as (path, listener):
                    words += ["--console-socket", path, self.id]
                    argv = self._argv(log_path, verb, *words)
                    _, ended = self.shim.children.spawn(argv, stdout=2, stderr=2)
                    self._check(verb, (await ended).status, log_path)
                    master_fd = await receive_console(listener)
                    await process.streams.take_console(master_fd, self.shim.children, identity)
            else:
                argv = self._argv(log_path, verb, *words, self.id)
                owner = (self.options.io_uid, self.options.io_gid)
                async with process.streams.pipes(owner, self.shim.children, identity) as ends:
                    _, ended = self.shim.children.spawn(
                        argv, stdin=ends.stdin, stdout=ends.stdout, stderr=ends.stderr
                    )
                    self._check(verb, (await ended).status, log_path)
            with open(f"{stem}.pid", encoding="ascii") as file:
                process.pid = int(file.read())
            process.reaped = self.shim.children.claim(process.pid)
            self._watch(process, process.reaped)

    def _check(self, verb: str, status: int, log_path: str) -> None:
        if status != 0:
            reason = runc.last_error(log_path) or f"{self.options.binary_name} ended {status}"
            raise CommandError(f"OCI runtime {verb} failed: {reason}")

    def _watch(self, process: Process, ended: asyncio.Future[Exit]) -> None:
        watch = asyncio.create_task(self._see_out(process, ended))
        self._watches.add(watch)
        watch.add_done_callback(self._watches.discard)

    async def _see_out(self, process: Process, ended: asyncio.Future[Exit]) -> None:
        """Wait for the end of a process, and tell of it in its turn."""
        exit_ = await ended
        if process is self.init:
            self._ending = True
            await self._end_others()
        async with process.starting:
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

    async def _end_others(self) -> None:
        """After the first process: see all others of the container out."""
        self._oom.close()
        await self._wait_for_starts()  # those that come later are refused
        if not any(one["type"] == "pid" and not one.get("path") for one in self._namespaces):
            with suppress(CommandError):  # there are none
                await self.call("kill", "--all", self.id, str(int(signal.SIGKILL)))
        for process in list(self.execs.values()):
            if process.status == RUNNING:
                await asyncio.shield(process.exited)

    async def _wait_for_starts(self) -> None:
        """Wait until the runtime has done with all execs that it was asked to start."""
        for process in list(self.execs.values()):
            async with process.starting:
                pass

    def _publish_oom(self) -> None:
        self.shim.publish(events.TaskOOM(container_id=self.id))


def _dump_flags(options: CheckpointOptions) -> list[str]:
    """runc's flags for what a client allows in a dump."""
    flags = {
        "--leave-running": not options.exit,
        "--tcp-established": options.open_tcp,
        "--ext-unix-sk": options.external_unix_sockets,
        "--shell-job": options.terminal,
        "--file-locks": options.file_locks,
    }
    chosen = [flag for flag, wanted in flags.items() if wanted]
    return chosen + [f"--empty-ns={name}" for name in options.empty_namespaces]
