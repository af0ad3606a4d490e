"""Streams between a process and its client: real fifos, files, terminals and logging programs."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import struct
import termios
from contextlib import suppress

import pytest

from grit_runtime.errors import CommandError, GritError, InvalidArgumentError, NotFoundError
from grit_runtime.shim import stdio
from grit_runtime.shim.children import Children
from grit_runtime.shim.stdio import Names, Streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

TIMEOUT_S = 20
US = (os.getuid(), os.getgid())
IDENTITY = {"CONTAINER_ID": "c", "CONTAINER_NAMESPACE": "n"}

# Takes both outputs, and says so by closing descriptor 5.
LOGGER = """\
#!/bin/sh
exec >"$2" 5>&-
echo "$1 $3 $CONTAINER_ID $CONTAINER_NAMESPACE"
cat <&3
cat <&4
"""


def run(scenario: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, TIMEOUT_S))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def fifo(path: Path) -> str:
    os.mkfifo(path)
    return str(path)


def read_end(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


async def live(streams: Streams, children: Children, script: str) -> int:
    """Have a shell run *script* with the streams; how it ended."""
    async with streams.pipes(US, children, IDENTITY) as ends:
        _, ended = children.spawn(
            ["sh", "-c", script], stdin=ends.stdin, stdout=ends.stdout, stderr=ends.stderr
        )
    return (await ended).status


def test_both_outputs_reach_the_client(tmp_path: Path) -> None:
    out, err = fifo(tmp_path / "out"), fifo(tmp_path / "err")

    async def scenario() -> None:
        streams = Streams(Names("", out, err, terminal=False))
        readers = [read_end(path) for path in (out, err)]
        assert await live(streams, Children("token"), "echo o; echo e >&2; exit 3") == 3
        await streams.drain(TIMEOUT_S)
        assert [os.read(fd, 100) for fd in readers] == [b"o\n", b"e\n"]
        await streams.close()
        for fd in readers:
            os.close(fd)

    run(scenario())


def test_input_ends_only_when_the_client_says_so(tmp_path: Path) -> None:
    source, out = fifo(tmp_path / "in"), fifo(tmp_path / "out")

    async def scenario() -> None:
        streams = Streams(Names(source, out, "", terminal=False))
        reader = read_end(out)
        waiting = asyncio.create_task(live(streams, Children("token"), "exec cat"))
        await asyncio.sleep(0)
        for text in (b"one", b"two"):  # each from a client that goes away again
            with open(source, "wb") as client:
                client.write(text)
            while (got := await _read(reader)) != text:
                assert got == b""
        assert not waiting.done()
        streams.close_input()
        streams.close_input()
        assert await waiting == 0
        await streams.close()
        os.close(reader)

    run(scenario())


async def _read(fd: int) -> bytes:
    """What is there to be read, after a moment."""
    await asyncio.sleep(0.01)
    try:
        return os.read(fd, 100)
    except BlockingIOError:
        return b""


def test_a_process_whom_nobody_reads_still_ends(tmp_path: Path) -> None:
    """A client that has gone, and a drain that has its limit."""
    out = fifo(tmp_path / "out")

    async def scenario() -> None:
        streams = Streams(Names("", out, "", terminal=False))
        left = f"sleep 1000 & echo $! >{tmp_path}/pid"
        assert await live(streams, Children("token"), left) == 0
        await streams.drain(0.05)
        await streams.close()

    run(scenario())
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def test_a_file_takes_both_outputs_and_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log"

    async def scenario() -> None:
        for _ in range(2):
            streams = Streams(Names("", f"file://{path}", f"file://{path}", terminal=False))
            await live(streams, Children("token"), "echo out; echo err >&2")
            await streams.drain(TIMEOUT_S)
            await streams.close()

    run(scenario())
    assert sorted(path.read_text().split()) == ["err", "err", "out", "out"]


@pytest.fixture
def logger(tmp_path: Path) -> Path:
    path = tmp_path / "logger"
    path.write_text(LOGGER)
    path.chmod(0o755)
    return path


def test_a_program_takes_both_outputs_to_the_end(tmp_path: Path, logger: Path) -> None:
    async def scenario() -> None:
        uri = f"binary://{logger}?path={tmp_path}/log&flag="
        streams = Streams(Names("", uri, uri, terminal=False))
        await live(streams, Children("token"), "echo out; echo err >&2")
        await streams.close()

    run(scenario())
    assert (tmp_path / "log").read_text() == "path flag c n\nout\nerr\n"


def test_a_program_takes_what_a_terminal_shows(tmp_path: Path, logger: Path) -> None:
    async def scenario() -> None:
        uri = f"binary://{logger}?path={tmp_path}/log&flag="
        streams = Streams(Names("", uri, "", terminal=True))
        master, slave = pty.openpty()
        await streams.take_console(master, Children("token"), IDENTITY)
        os.write(slave, b"shown\n")
        os.close(slave)
        await streams.drain(TIMEOUT_S)
        await streams.close()

    run(scenario())
    assert (tmp_path / "log").read_text() == "path flag c n\nshown\n"


def test_a_terminal_relays_both_ways_and_has_a_size(tmp_path: Path) -> None:
    source, out = fifo(tmp_path / "in"), fifo(tmp_path / "out")

    async def scenario() -> None:
        streams = Streams(Names(source, out, "", terminal=True))
        master, slave = pty.openpty()
        await streams.take_console(master, Children("token"), IDENTITY)
        streams.resize(77, 33)
        size = fcntl.ioctl(slave, termios.TIOCGWINSZ, bytes(8))
        assert struct.unpack("HHHH", size)[:2] == (33, 77)
        reader = read_end(out)
        with open(source, "wb") as client:
            client.write(b"typed\n")
        assert await asyncio.to_thread(os.read, slave, 100) == b"typed\n"
        os.write(slave, b"shown\n")
        os.close(slave)
        await streams.drain(TIMEOUT_S)
        assert os.read(reader, 100) == b"typed\r\nshown\r\n"  # the first is the echo
        await streams.close()
        os.close(reader)

    run(scenario())


def terminals() -> int:
    """How many descriptors of ours are a terminal's master."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that this was read from
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum(link.endswith("/ptmx") for link in links)


def test_a_terminal_is_open_once_while_it_is_used_and_not_after(tmp_path: Path) -> None:
    source, out = fifo(tmp_path / "in"), fifo(tmp_path / "out")

    async def scenario() -> None:
        streams = Streams(Names(source, out, "", terminal=True))
        master, slave = pty.openpty()
        await streams.take_console(master, Children("token"), IDENTITY)
        assert terminals() == 1
        os.write(slave, b"last words")
        os.close(slave)
        reader = read_end(out)
        await streams.hang_up()
        assert terminals() == 0
        assert os.read(reader, 100) == b"last words"
        streams.resize(77, 33)
        await streams.close()
        os.close(reader)

    run(scenario())


@pytest.mark.parametrize(
    ("stdin", "stdout", "kind", "reason"),
    [
        ("", "pigeon://x", InvalidArgumentError, "scheme pigeon is unknown"),
        ("", "/no/such/fifo", FileNotFoundError, "/no/such/fifo"),
        ("/no/such/fifo", "file:///dev/null", FileNotFoundError, "/no/such/fifo"),
        ("", "binary:///no/such/program", NotFoundError, "/no/such/program: not found"),
        ("", "binary:///bin/false", CommandError, "/bin/false ended before it was ready"),
        ("", "binary:///bin/sleep?1000=1000", CommandError, "waited 0.1 s for logging program"),
    ],
)
def test_streams_that_cannot_be_had_leave_no_descriptors(
    monkeypatch: pytest.MonkeyPatch,
    stdin: str,
    stdout: str,
    kind: type[GritError | OSError],
    reason: str,
) -> None:
    monkeypatch.setattr(stdio, "LOGGER_READY_TIMEOUT_S", 0.1)
    monkeypatch.setattr(stdio, "LOGGER_STOP_TIMEOUT_S", 0.1)

    async def scenario() -> None:
        children = Children("token")
        before = open_files()
        streams = Streams(Names(stdin, stdout, "", terminal=False))
        with pytest.raises(kind, match=reason):
            await live(streams, children, "true")
        await streams.close()
        assert open_files() == before

    run(scenario())


def test_what_has_been_closed_has_left_no_descriptors(tmp_path: Path) -> None:
    source, out, err = (fifo(tmp_path / name) for name in ("in", "out", "err"))

    async def scenario() -> None:
        children = Children("token")
        before = open_files()
        for terminal in (False, True):
            streams = Streams(Names(source, out, err, terminal=terminal))
            if terminal:
                master, slave = pty.openpty()
                await streams.take_console(master, children, IDENTITY)
                os.close(slave)
            else:
                await live(streams, children, "true")
            await streams.close()
            await streams.close()
        assert open_files() == before

    run(scenario())
