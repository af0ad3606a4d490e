"""The OCI runtime, as a shim calls it for one container."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress

from grit_runtime.errors import (
    CommandError,
)
from grit_runtime.host import runc
from grit_runtime.shim.stdio import console_socket, receive_console
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from google.protobuf.message import Message

    from grit_runtime.model.runtime_options import RuntimeOptions
    from grit_runtime.proto.runc_options_pb2 import CheckpointOptions
    from grit_runtime.shim.children import Children, Exit
    from grit_runtime.shim.task_process import Process


class Shim(NamedTuple):
    """The objects that the containers of one shim share."""

    namespace: str
    children: Children
    publish: Callable[[Message], None]


class Runtime:
    """The commands of one container."""

    def __init__(self, shim: Shim, id_: str, bundle_dir: str, options: RuntimeOptions) -> None:
        self._shim = shim
        self._id = id_
        self._bundle_dir = bundle_dir
        self._options = options

    async def call(self, verb: str, *arguments: str) -> None:
        """Run a command of the runtime; CommandError with its last line."""
        argv = self._argv(f"{self._bundle_dir}/log.json", verb, *arguments)
        done = await self._shim.children.run(argv)
        if done.status != 0:
            lines = done.err.strip().splitlines() or [f"ended {done.status} and said nothing"]
            raise CommandError(f"{self._options.binary_name} {verb}: {lines[-1]}")

    def _argv(self, log_path: str, *command: str) -> list[str]:
        return self._options.argv(self._shim.namespace, log_path, *command)

    async def launch(
        self, process: Process, verb: str, *arguments: str, stem: str
    ) -> asyncio.Future[Exit]:
        """Run a command that leaves *process* behind as this shim's child, with its streams.

        Returns its future exit. The command's standard error is the container's, so its error is
        read from its log.
        """
        log_path = f"{stem}.log"
        words = [*arguments, "--pid-file", f"{stem}.pid"]
        identity = {"CONTAINER_ID": self._id, "CONTAINER_NAMESPACE": self._shim.namespace}
        with self._shim.children.expecting(), self._ended_on_failure(f"{stem}.pid"):
            if process.streams.names.terminal:
                with console_socket() as (path, listener):
                    words += ["--console-socket", path, self._id]
                    argv = self._argv(log_path, verb, *words)
                    _, ended = self._shim.children.spawn(argv, stdout=2, stderr=2)
                    self._check(verb, (await ended).status, log_path)
                    master_fd = await receive_console(listener)
                    await process.streams.take_console(master_fd, self._shim.children, identity)
            else:
                argv = self._argv(log_path, verb, *words, self._id)
                owner = (self._options.io_uid, self._options.io_gid)
                async with process.streams.pipes(owner, self._shim.children, identity) as ends:
                    _, ended = self._shim.children.spawn(
                        argv, stdin=ends.stdin, stdout=ends.stdout, stderr=ends.stderr
                    )
                    self._check(verb, (await ended).status, log_path)
            with open(f"{stem}.pid", encoding="ascii") as file:
                process.pid = int(file.read())
            process.reaped = self._shim.children.claim(process.pid)
            return process.reaped

    @contextmanager
    def _ended_on_failure(self, pid_path: str) -> Iterator[None]:
        """Kill the new process if the block fails after it was made."""
        with suppress(FileNotFoundError):
            os.unlink(pid_path)  # of a restore that has failed before: by now it may be another's
        try:
            yield
        except BaseException:
            with suppress(FileNotFoundError), open(pid_path, encoding="ascii") as file:
                pid = int(file.read())
                if not self._shim.children.claim(pid).done():
                    os.kill(pid, signal.SIGKILL)
            raise

    def _check(self, verb: str, status: int, log_path: str) -> None:
        if status != 0:
            reason = runc.last_error(log_path) or f"{self._options.binary_name} ended {status}"
            raise CommandError(f"OCI runtime {verb} failed: {reason}")


def dump_flags(options: CheckpointOptions) -> list[str]:
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
