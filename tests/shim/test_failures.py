"""A runtime that fails: what its client is told, and what it does not hear."""

from __future__ import annotations

import asyncio
import os

import pytest

from grit_runtime.errors import CommandError, NotFoundError
from grit_runtime.shim.task_process import CREATED
from tests.shim.stage import Stage, play

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

PROMPTLY_S = 5


def heard(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except BlockingIOError:
        return b""


async def create(stage: Stage, stderr: str) -> None:
    await stage.create(stderr=stderr)


async def execute(stage: Stage, stderr: str) -> None:
    await stage.create()
    await stage.ask("Start")
    await stage.add("failing", stderr=stderr)
    try:
        await stage.ask("Start", exec_id="failing")
    finally:
        await asyncio.wait_for(stage.ask("Delete", exec_id="failing"), PROMPTLY_S)


@pytest.mark.parametrize(("verb", "fail"), [("create", create), ("exec", execute)])
def test_what_the_runtime_says_of_its_failure_is_not_in_the_log(
    tmp_path: Path, verb: str, fail: Callable[[Stage, str], Coroutine[object, object, None]]
) -> None:
    err = tmp_path / "err"
    os.mkfifo(err)

    async def scene(stage: Stage) -> None:
        reader = os.open(err, os.O_RDONLY | os.O_NONBLOCK)
        stage.fail(verb, "no such program")
        with pytest.raises(CommandError, match=f"OCI runtime {verb} failed: no such program"):
            await fail(stage, str(err))
        assert heard(reader) == b""
        os.close(reader)

    play(tmp_path, scene)


def test_a_container_whose_create_fails_is_not_there_for_a_delete_that_waited(
    tmp_path: Path,
) -> None:
    async def scene(stage: Stage) -> None:
        stage.fail("create", "it has not arrived")
        async with stage.held_up("before", "create") as gate:
            creating = asyncio.create_task(stage.create())
            async with gate.reached():
                assert await stage.status() == CREATED
                deleting = asyncio.create_task(stage.ask("Delete"))
                await asyncio.sleep(0)  # until it waits
            with pytest.raises(CommandError, match="it has not arrived"):
                await creating
            with pytest.raises(NotFoundError, match="not found"):
                await asyncio.wait_for(deleting, PROMPTLY_S)

    play(tmp_path, scene)


def test_what_the_runtime_says_of_its_success_is(tmp_path: Path) -> None:
    err = tmp_path / "err"
    os.mkfifo(err)

    async def scene(stage: Stage) -> None:
        reader = os.open(err, os.O_RDONLY | os.O_NONBLOCK)
        await stage.create(stderr=str(err))
        while not (said := heard(reader)):
            await asyncio.sleep(0.01)
        assert said == b"done: create\n"
        os.close(reader)

    play(tmp_path, scene)
