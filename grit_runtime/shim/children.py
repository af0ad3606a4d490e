"""The shim's children: commands of the runtime, and containers' processes, which it adopts.

A container's first process is a child of a runc that ends at once; the shim, a subreaper, becomes
its parent then. So a child may end before it is known what it is, and only this module waits for
children: nothing else in the shim calls waitpid.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import time
from contextlib import ExitStack, contextmanager

from grit_runtime.host import linux, process
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_OUTPUT_LIMIT_BYTES = 1 << 20


class Exit(NamedTuple):
    """How a process ended: its exit code, or 128 and the signal; and when, by the wall clock."""

    status: int
    at_ns: int


class Output(NamedTuple):
    """The result of a command: its exit status, and what it printed."""

    status: int
    out: str
    err: str


class Children:
    """All children of this process. Belongs to one running event loop."""

    def __init__(self, token: str) -> None:
        self._token = token
        self._awaited: dict[int, asyncio.Future[Exit]] = {}
        self._unclaimed: dict[int, Exit] = {}
        self._expecting = 0
        linux.adopt_orphans(wanted=True)
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, self._reap)

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """While the block runs, exits of unclaimed processes are kept.

        The block must begin before a container's process can exist, and last until it is claimed.
        """
        self._expecting += 1
        try:
            yield
        finally:
            self._expecting -= 1
            if self._expecting == 0:
                self._unclaimed.clear()

    def claim(self, pid: int) -> asyncio.Future[Exit]:
        """The exit of *pid*, which may have ended already."""
        future: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        if pid in self._unclaimed:
            future.set_result(self._unclaimed.pop(pid))
        else:
            self._awaited[pid] = future
        return future

    def spawn(
        self,
        argv: list[str],
        *,
        stdin: int | None = None,
        stdout: int,
        stderr: int,
        passed_fds: tuple[int, ...] = (),
        env: dict[str, str] | None = None,
    ) -> tuple[int, asyncio.Future[Exit]]:
        """Start *argv*, with nothing to read by default; its pid and its exit.

        *passed_fds* become its descriptors 3 and up; all stay the caller's. Unlike a fork this does
        not copy the shim's memory, but the child outlives the shim: `delete` finds it by its token.
        OSError if there is no such program.
        """
        with ExitStack() as stack:
            null = stack.enter_context(open(os.devnull, "rb", buffering=0))
            fds = [null.fileno() if stdin is None else stdin, stdout, stderr, *passed_fds]
            for at, fd in enumerate(fds):  # out of the way of the descriptors from 3 on
                fds[at] = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, len(fds))
                stack.callback(os.close, fds[at])
            pid = os.posix_spawnp(
                argv[0],
                argv,
                {**os.environ, process.OPERATION: self._token, **(env or {})},
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, at) for at, fd in enumerate(fds)],
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # which Python ignores
            )
        return pid, self.claim(pid)

    async def run(self, argv: list[str]) -> Output:
        """Run *argv* to its end, with nothing to read."""
        with (
            os.fdopen(os.memfd_create("out"), "rb", buffering=0) as out,
            os.fdopen(os.memfd_create("err"), "rb", buffering=0) as err,
        ):
            _, ended = self.spawn(argv, stdout=out.fileno(), stderr=err.fileno())
            status = (await ended).status
            printed = (os.pread(file.fileno(), _OUTPUT_LIMIT_BYTES, 0) for file in (out, err))
            return Output(status, *(text.decode(errors="replace") for text in printed))

    def _reap(self) -> None:
        at_ns = time.time_ns()
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            code = os.waitstatus_to_exitcode(wait_status)
            ended = Exit(code if code >= 0 else 128 - code, at_ns)
            if future := self._awaited.pop(pid, None):
                future.set_result(ended)
            elif self._expecting:
                self._unclaimed[pid] = ended
