"""Standard streams of a process: pipes or a terminal for it, relays to the client's end.

The client names fifos, files, or a program that takes logs. The process never gets these
themselves: when it is restored, runc puts new streams in the place of those that were pipes, and
of no others (libcontainer/criu_linux.go). Spec: containerd v2.1.9 cmd/containerd-shim-runc-v2/
process/io.go, core/runtime/v2/README.md (Logging).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import stat
import struct
import termios
from contextlib import ExitStack, asynccontextmanager, contextmanager
from urllib.parse import parse_qsl, urlsplit

from grit_runtime import paths
from grit_runtime.errors import CommandError, InvalidArgumentError, NotFoundError
from grit_runtime.host.process import new_token
from grit_runtime.host.procfs import is_ending
from grit_runtime.shim.relay import Relay
from grit_runtime.shim.threads import in_thread
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from grit_runtime.shim.children import Children, Exit

CONSOLE_TIMEOUT_S = 30
LOGGER_READY_TIMEOUT_S = 10
LOGGER_STOP_TIMEOUT_S = 12

_OURSELVES = (-1, -1)  # chown(2): no change


class Names(NamedTuple):
    """The client's names of the streams: paths or URLs; "" for none."""

    stdin: str
    stdout: str
    stderr: str
    terminal: bool


class Ends(NamedTuple):
    """The descriptors that a process gets."""

    stdin: int
    stdout: int
    stderr: int


class _ClientEnds(NamedTuple):
    """The shim's descriptors of the client's ends; -1 for streams not named, or with a program."""

    source: int
    source_keeper: int  # the same fifo, held open to write to: it does not end with the client
    stdout: int
    stderr: int


class Streams:
    """The shim's side of one process's streams, until the process is deleted."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self._outputs: list[Relay] = []
        self._turn = asyncio.Lock()  # both outputs may go to one file
        self._input: Relay | None = None
        self._input_fd = -1  # keeps the fifo from ending when a client disconnects
        self._console_fd = -1
        self._logger: asyncio.Future[Exit] | None = None
        self._logger_pid = 0

    @asynccontextmanager
    async def pipes(
        self, owner: tuple[int, int], children: Children, identity: dict[str, str]
    ) -> AsyncIterator[Ends]:
        """Streams for a process started in the block; its ends of pipes belong to *owner*.

        If the block fails, its output does not reach the client: a runtime that cannot make a
        container writes its error to the container's standard error. *identity* is the environment
        of a program that takes the output.
        """
        try:
            with ExitStack() as theirs:
                yield await self._open_pipes(owner, theirs, children, identity)
        except BaseException:
            await self.close()
            raise
        self._start_relays()

    async def take_console(
        self, master_fd: int, children: Children, identity: dict[str, str]
    ) -> None:
        """Relay between the client and a terminal; takes ownership of its master."""
        os.set_blocking(master_fd, False)  # of all its duplicates too
        self._console_fd = master_fd
        try:
            with ExitStack() as theirs:
                await self._open_console(theirs, children, identity)
        except BaseException:
            await self.close()
            raise
        self._start_relays()

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size; does nothing for a process without one."""
        if self._console_fd >= 0:
            size = struct.pack("HHHH", height & 0xFFFF, width & 0xFFFF, 0, 0)  # as in Go's shim
            fcntl.ioctl(self._console_fd, termios.TIOCSWINSZ, size)

    async def hang_up(self) -> None:
        """Close the terminal of a process that has ended, once the client has all its output."""
        if self._console_fd >= 0:
            if outputs := [relay.done for relay in self._outputs]:
                await asyncio.wait(outputs)
            self._close_console()

    def close_input(self) -> None:
        """Let the input end once no client has it open either."""
        if self._input_fd >= 0:
            os.close(self._input_fd)
            self._input_fd = -1

    async def drain(self, timeout_s: float) -> None:
        """Wait until all output has reached the client; a leftover process may keep it open."""
        if outputs := [relay.done for relay in self._outputs]:
            await asyncio.wait(outputs, timeout=timeout_s)

    async def close(self) -> None:
        """Close what is left of the streams, and end a program that took the output.

        They can be opened again then.
        """
        for relay in self._outputs:
            relay.close()
        if self._input:
            self._input.close()
        self.close_input()
        self._close_console()
        if self._logger:
            await self._stop_logger(self._logger)
        self._outputs, self._input, self._logger = [], None, None

    def _close_console(self) -> None:
        if self._console_fd >= 0:
            if self._input:
                self._input.close()
            os.close(self._console_fd)
            self._console_fd = -1

    def _start_relays(self) -> None:
        for relay in (*self._outputs, *filter(None, [self._input])):
            relay.start()

    async def _open_pipes(
        self,
        owner: tuple[int, int],
        theirs: ExitStack,
        children: Children,
        identity: dict[str, str],
    ) -> Ends:
        stdin, stdout, stderr = (_null(theirs) for _ in range(3))
        client = await in_thread(_open_client_ends, self.names)
        if client.source >= 0:
            self._input_fd = client.source_keeper
            sink_fd, stdin = _pipe(owner, theirs, to_us=False)
            self._input = Relay(client.source, sink_fd)
        if client.stdout >= 0:
            stdout = self._relayed_to(client.stdout, owner, theirs)
        if client.stderr >= 0:
            stderr = self._relayed_to(client.stderr, owner, theirs)
        if _takes_output(self.names.stdout):
            stdout, stderr = await self._start_logger(owner, theirs, children, identity)
        return Ends(stdin, stdout, stderr)

    async def _open_console(
        self, theirs: ExitStack, children: Children, identity: dict[str, str]
    ) -> None:
        master_fd = self._console_fd
        client = await in_thread(_open_client_ends, self.names)
        if client.source >= 0:
            self._input_fd = client.source_keeper
            self._input = Relay(client.source, master_fd, kept_fd=master_fd)
        shown = client.stdout
        if _takes_output(self.names.stdout):
            out, _ = await self._start_logger(_OURSELVES, theirs, children, identity)
            os.set_blocking(out, False)
            shown = os.dup(out)
        if shown >= 0:
            self._outputs.append(Relay(master_fd, shown, kept_fd=master_fd))

    def _relayed_to(self, sink_fd: int, owner: tuple[int, int], theirs: ExitStack) -> int:
        """The process's end of a pipe whose output is relayed to the client's end."""
        ours, its = _pipe(owner, theirs, to_us=True)
        self._outputs.append(Relay(ours, sink_fd, turn=self._turn))
        return its

    async def _start_logger(
        self,
        owner: tuple[int, int],
        theirs: ExitStack,
        children: Children,
        identity: dict[str, str],
    ) -> tuple[int, int]:
        """Run the program of a ``binary:///PROGRAM?NAME=VALUE`` URL until it is ready.

        The ends of pipes that it reads both outputs from; *theirs* closes them.
        """
        url = urlsplit(self.names.stdout)
        if not await in_thread(os.access, url.path, os.X_OK):
            raise NotFoundError(f"logging program {url.path}: not found, or not executable")
        words = (word for pair in parse_qsl(url.query, keep_blank_values=True) for word in pair)
        with ExitStack() as its:
            out, stdout = _pipe(owner, theirs, to_us=True)
            its.callback(os.close, out)
            err, stderr = _pipe(owner, theirs, to_us=True)
            its.callback(os.close, err)
            for fd in (out, err):
                os.set_blocking(fd, True)
            ready_fd, ready = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            waiting = theirs.enter_context(open(ready_fd, "rb"))
            its.callback(os.close, ready)
            self._logger_pid, self._logger = children.spawn(
                [url.path, *words], stdout=2, stderr=2, passed_fds=(out, err, ready), env=identity
            )
        await _readable(waiting.fileno(), LOGGER_READY_TIMEOUT_S, f"logging program {url.path}")
        if is_ending(self._logger_pid):
            raise CommandError(f"logging program {url.path} ended before it was ready")
        return stdout, stderr

    async def _stop_logger(self, ended: asyncio.Future[Exit]) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            done, _ = await asyncio.wait([ended], timeout=LOGGER_STOP_TIMEOUT_S)
            if done:
                return
            os.kill(self._logger_pid, number)


@contextmanager
def console_socket() -> Iterator[tuple[str, socket.socket]]:
    """A path for runc's ``--console-socket``, and the socket that listens on it."""
    # Not in the bundle: the path of a socket is at most 107 bytes long.
    path = f"{paths.RUN_DIR}/console-{new_token()}"
    os.makedirs(paths.RUN_DIR, mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        try:
            listener.listen()
            yield path, listener
        finally:
            os.unlink(path)


async def receive_console(listener: socket.socket) -> int:
    """The master of the terminal that runc has made."""
    await _readable(listener.fileno(), CONSOLE_TIMEOUT_S, "runc's connection to the console socket")
    connection, _ = listener.accept()
    with connection:
        await _readable(connection.fileno(), CONSOLE_TIMEOUT_S, "the terminal from runc")
        _, fds, _, _ = socket.recv_fds(connection, 4096, 1)
    if not fds:
        raise CommandError("runc sent no terminal over the console socket")
    return fds[0]


async def _readable(fd: int, timeout_s: float, what: str) -> None:
    """Wait until *fd* can be read; CommandError, naming *what*, after *timeout_s*."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await asyncio.wait_for(ready.wait(), timeout_s)
    except TimeoutError:
        raise CommandError(f"waited {timeout_s} s for {what}") from None
    finally:
        loop.remove_reader(fd)


def _takes_output(name: str) -> bool:
    """Whether an output's name is a program, which takes both outputs."""
    return urlsplit(name).scheme == "binary"


def _null(closing: ExitStack) -> int:
    fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    closing.callback(os.close, fd)
    return fd


def _pipe(owner: tuple[int, int], theirs: ExitStack, *, to_us: bool) -> tuple[int, int]:
    """The shim's end of a pipe, which never blocks, and the process's, which *theirs* closes."""
    read_fd, write_fd = os.pipe()
    ours, its = (read_fd, write_fd) if to_us else (write_fd, read_fd)
    theirs.callback(os.close, its)
    os.fchown(its, *owner)  # so that the process's user can open its /dev/stdout
    os.set_blocking(ours, False)
    return ours, its


def _open_client_ends(names: Names) -> _ClientEnds:
    """Open all streams that the client has named, or raise the first error with none open.

    Blocks if their file system is away.
    """
    with ExitStack() as opened:

        def kept(fd: int) -> int:
            opened.callback(os.close, fd)
            return fd

        source, keeper, stdout, stderr = -1, -1, -1, -1
        if names.stdin:
            source = kept(os.open(names.stdin, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            keeper = kept(os.open(names.stdin, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC))
        if not _takes_output(names.stdout):
            if names.stdout:
                stdout = kept(_sink(names.stdout))
            if names.stderr and not names.terminal:  # both outputs go to the one file of a URL
                is_file = urlsplit(names.stdout).scheme == "file"
                stderr = kept(_sink(names.stdout if is_file else names.stderr))
        opened.pop_all()
        return _ClientEnds(source, keeper, stdout, stderr)


def _sink(name: str) -> int:
    """The client's end of an output: a fifo or a file.

    A fifo is opened for reading too, so that a client which goes away neither ends the relay nor
    blocks its start.
    """
    url = urlsplit(name)
    if url.scheme == "file":
        os.makedirs(os.path.dirname(url.path), mode=0o755, exist_ok=True)
        return os.open(url.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    if url.scheme not in ("", "fifo"):
        raise InvalidArgumentError(
            f"stream {name}: scheme {url.scheme} is unknown, expected fifo, file or binary"
        )
    if stat.S_ISFIFO(os.stat(url.path).st_mode):
        return os.open(url.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    return os.open(url.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
