"""What hangs or takes long holds up what waits for it, and nothing else."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from grit_runtime.proto.containerd_types_pb2 import Mount
from grit_runtime.shim.relay import Relay
from tests.shim.stage import Stage, play

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LATE_S = 3
PROMPTLY_S = 1
HEAVY_BYTES = 256 << 20

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")


@contextmanager
def promptly() -> Iterator[None]:
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < PROMPTLY_S


@contextmanager
def released(work: Callable[[], object]) -> Iterator[threading.Event]:
    """Does *work*, which lets go what hangs, when the event is set, or in the end."""
    done = threading.Event()

    def wait() -> None:
        done.wait(LATE_S)
        work()

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield done
    finally:
        done.set()
        thread.join()


def test_a_log_that_cannot_be_opened_yet(tmp_path: Path) -> None:
    log = tmp_path / "log"
    os.mkfifo(log)  # opened as a file is, it waits for a reader

    async def scene(stage: Stage) -> None:
        with released(lambda: os.close(os.open(log, os.O_RDONLY))) as opened:
            create = asyncio.create_task(stage.create(stdout=f"file://{log}"))
            with promptly():
                await asyncio.sleep(0)
                await stage.status()
            assert not create.done()
            opened.set()
            await create

    play(tmp_path, scene)


def test_a_log_that_cannot_be_written_yet() -> None:
    data = os.urandom(1 << 20)

    async def run() -> None:
        source, feeding = os.pipe()
        os.set_blocking(source, False)
        drained, sink = (end.detach() for end in socket.socketpair())
        relay = Relay(source, sink)
        relay.start()
        feeder = threading.Thread(target=_write_all, args=(feeding, data))
        feeder.start()
        got: list[bytes] = []
        with released(lambda: got.append(_read_all(drained))) as drain:
            try:
                with promptly():
                    await asyncio.sleep(0.1)
                assert not relay.done.done()
                drain.set()
                await relay.done
            finally:
                relay.close()
        feeder.join()
        assert got == [data]

    asyncio.run(run())


def _write_all(fd: int, data: bytes) -> None:
    with open(fd, "wb") as file:
        file.write(data)


def _read_all(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


@needs_root
def test_an_unmount_that_takes_long(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.create(rootfs=[Mount(type="tmpfs", source="tmpfs")])
        with open(tmp_path / "rootfs/heavy", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, HEAVY_BYTES)
        async with stage.held_up("after", "delete") as gate:
            delete = asyncio.create_task(stage.ask("Delete"))
            async with gate.reached():
                pass
        answers = 0
        while not delete.done():
            await stage.status()
            answers += 1
            await asyncio.sleep(0.001)
        assert answers > 10

    play(tmp_path, scene)
