"""Children that are waited for in one place: real processes, orphans among them."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from grit_runtime.shim.children import Children

TIMEOUT_S = 20

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path


def run(work: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(work, TIMEOUT_S))


def test_a_command_gives_its_output_and_status() -> None:
    async def work() -> None:
        done = await Children("token").run(["sh", "-c", "echo out; echo err >&2; exit 3"])
        assert done == (3, "out\n", "err\n")

    run(work())


def test_a_program_that_is_not_there_is_named() -> None:
    async def work() -> None:
        with pytest.raises(FileNotFoundError, match="'/no/such/program'"):
            await Children("token").run(["/no/such/program"])

    run(work())


def test_a_signal_is_told_from_an_exit_code() -> None:
    async def work() -> None:
        with open(os.devnull, "w") as null:
            pid, ended = Children("token").spawn(
                ["sleep", "100"], stdout=null.fileno(), stderr=null.fileno()
            )
        os.kill(pid, signal.SIGKILL)
        assert (await ended).status == 128 + signal.SIGKILL

    run(work())


def test_an_orphan_that_ended_before_it_was_claimed_is_not_lost(tmp_path: Path) -> None:
    """As a container's process that ends while the runtime still says its pid."""
    pid_path = tmp_path / "pid"

    async def work() -> None:
        children = Children("token")
        with children.expecting():
            orphan = (
                f"(sh -c 'echo $$ >{pid_path}; exit 5' &) ; until [ -s {pid_path} ]; do :; done"
            )
            assert (await children.run(["sh", "-c", orphan])).status == 0
            ended = children.claim(int(pid_path.read_text()))
        assert (await ended).status == 5

    run(work())


def test_a_program_finds_what_it_was_passed_from_three_on() -> None:
    async def work() -> None:
        read_fd, write_fd = os.pipe()
        with open(os.devnull, "w") as null:
            _, ended = Children("token").spawn(
                ["sh", "-c", "echo here >&4"],
                stdout=null.fileno(),
                stderr=null.fileno(),
                passed_fds=(read_fd, write_fd),
            )
        os.close(write_fd)
        assert (await ended).status == 0
        with open(read_fd, "rb") as file:
            assert file.read() == b"here\n"

    run(work())
