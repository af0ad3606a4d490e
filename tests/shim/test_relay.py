"""Relays between real pipes, fifos, terminals and files."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import sys
import termios
import threading
import tty

import pytest

from grit_runtime.shim.relay import Relay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S = 20


def pipe(*, ours: str) -> tuple[int, int]:
    """A pipe whose end *ours*, "read" or "write", does not block."""
    ends = os.pipe()
    os.set_blocking(ends[0 if ours == "read" else 1], False)
    return ends


def started(relay: Relay) -> Relay:
    relay.start()
    return relay


def read_all(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


def test_all_that_goes_in_comes_out_though_the_reader_is_slow() -> None:
    data = os.urandom(3 << 20)
    source, feeding = pipe(ours="read")
    drained, sink = pipe(ours="write")
    got: list[bytes] = []

    def feed() -> None:
        with open(feeding, "wb") as file:
            file.write(data)

    async def run() -> None:
        relay = started(Relay(source, sink))
        threads = [
            threading.Thread(target=feed),
            threading.Thread(target=lambda: got.append(read_all(drained))),
        ]
        for thread in threads:
            thread.start()
        await asyncio.wait_for(relay.done, TIMEOUT_S)
        for thread in threads:
            await asyncio.to_thread(thread.join)

    asyncio.run(run())
    assert got == [data]


def test_nothing_is_lost_while_nobody_reads() -> None:
    async def run() -> bytes:
        source, feeding = pipe(ours="read")
        drained, sink = pipe(ours="write")
        relay = started(Relay(source, sink))
        os.set_blocking(feeding, False)
        written = 0
        try:
            while True:
                written += os.write(feeding, b"x" * 4096)
                await asyncio.sleep(0)
        except BlockingIOError:
            os.close(feeding)
        assert not relay.done.done()
        got = await asyncio.to_thread(read_all, drained)
        await asyncio.wait_for(relay.done, TIMEOUT_S)
        assert len(got) == written
        return got

    assert set(asyncio.run(run())) == set(b"x")


def test_a_reader_that_goes_away_ends_the_relay() -> None:
    async def run() -> None:
        source, feeding = pipe(ours="read")
        drained, sink = pipe(ours="write")
        relay = started(Relay(source, sink))
        os.close(drained)
        os.write(feeding, b"for nobody")
        await asyncio.wait_for(relay.done, TIMEOUT_S)
        with pytest.raises(BrokenPipeError):
            os.write(feeding, b"more")
        os.close(feeding)

    asyncio.run(run())


def test_output_of_a_terminal_ends_when_its_last_user_closes_it(tmp_path: Path) -> None:
    async def run() -> None:
        master, slave = pty.openpty()
        os.set_blocking(master, False)
        sink = os.open(tmp_path / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        relay = started(Relay(master, sink))
        os.write(slave, b"hello\n")
        os.close(slave)
        await asyncio.wait_for(relay.done, TIMEOUT_S)

    asyncio.run(run())
    assert (tmp_path / "log").read_bytes() == b"hello\r\n"


def test_a_closed_relay_has_closed_both_ends() -> None:
    async def run() -> None:
        source, feeding = pipe(ours="read")
        drained, sink = pipe(ours="write")
        started(Relay(source, sink)).close()
        assert await asyncio.to_thread(read_all, drained) == b""
        with pytest.raises(BrokenPipeError):
            os.write(feeding, b"x")
        os.close(feeding)

    asyncio.run(run())


def test_a_full_disk_costs_what_is_written_and_not_the_writer() -> None:
    async def run() -> None:
        source, feeding = pipe(ours="read")
        relay = started(Relay(source, os.open("/dev/full", os.O_WRONLY)))
        for _ in range(8):  # more than the pipe holds
            await asyncio.to_thread(os.write, feeding, bytes(32 << 10))
        assert not relay.done.done()
        os.close(feeding)
        await asyncio.wait_for(relay.done, TIMEOUT_S)

    asyncio.run(run())


def test_relays_in_turn_write_in_the_order_in_which_they_have_read(tmp_path: Path) -> None:
    path = tmp_path / "log"

    async def run() -> None:
        turn = asyncio.Lock()
        sources, feeds = zip(*(pipe(ours="read") for _ in range(2)), strict=True)
        relays = [
            started(Relay(source, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), turn=turn))
            for source in sources
        ]
        for number in range(400):
            os.write(feeds[number % 2], b"%d\n" % number)
            while unread(sources[number % 2]):
                await asyncio.sleep(0)
        for feed, relay in zip(feeds, relays, strict=True):
            os.close(feed)
            await relay.done

    asyncio.run(run())
    assert path.read_text().split() == [str(number) for number in range(400)]


def unread(fd: int) -> int:
    """How many bytes nobody has read yet."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_terminal_gets_all_that_was_pasted_at_once() -> None:
    data = b"x" * 20_000  # several times what a terminal takes in before its program reads

    async def run() -> bytes:
        source, feeding = pipe(ours="read")
        master, slave = pty.openpty()
        tty.setraw(slave)
        os.set_blocking(master, False)
        relay = started(Relay(source, os.dup(master)))
        os.write(feeding, data)  # and nothing comes after it
        got = b""
        while len(got) < len(data):
            got += await asyncio.wait_for(asyncio.to_thread(os.read, slave, 4096), TIMEOUT_S)
        relay.close()
        for fd in (master, slave, feeding):
            os.close(fd)
        return got

    assert asyncio.run(run()) == data
