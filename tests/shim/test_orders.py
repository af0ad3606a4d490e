"""Calls that overlap: what is answered before what, whichever call of the runtime is slow.

Told of an exit, containerd deletes the container and hangs up, whatever else it still waits for.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from contextlib import suppress

import pytest

from grit_runtime.errors import FailedPreconditionError, NotFoundError
from tests.shim.stage import Gate, Stage, play

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

LATER_S = 0.2  # in which what need not wait is over


async def assert_waits(*calls: asyncio.Task[object]) -> None:
    done, _ = await asyncio.wait(calls, timeout=LATER_S)
    assert not done


def test_a_kill_is_answered_before_the_exit_that_it_brings(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.create()
        await stage.ask("Start")
        async with stage.held_up("after", "kill") as gate:
            kill = asyncio.create_task(stage.ask("Kill", signal=signal.SIGKILL))
            wait = asyncio.create_task(stage.ask("Wait"))
            async with gate.reached():
                await assert_waits(kill, wait)
            await wait
        await stage.ask("Delete")
        expected = ["Kill", "/tasks/exit", "Wait", "/tasks/delete", "Delete"]
        assert stage.told[stage.told.index("Start") + 1 :] == expected

    play(tmp_path, scene)


def test_a_kill_is_answered_before_a_delete_begins(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.create()
        async with stage.held_up("after", "kill") as gate:
            kill = asyncio.create_task(stage.ask("Kill", signal=signal.SIGCONT))
            async with gate.reached():
                delete = asyncio.create_task(stage.ask("Delete"))
                await assert_waits(kill, delete)
            await delete
        assert stage.told.index("Kill") < stage.told.index("Delete")

    play(tmp_path, scene)


def test_a_kill_waits_for_the_exec_that_it_means(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        await stage.create()
        await stage.ask("Start")
        await stage.add("slow")
        async with stage.held_up("before", "exec") as gate:
            start = asyncio.create_task(stage.ask("Start", exec_id="slow"))
            async with gate.reached():
                kill = asyncio.create_task(stage.ask("Kill", exec_id="slow", signal=signal.SIGKILL))
                await assert_waits(start, kill)
            await stage.ask("Wait", exec_id="slow")
        expected = ["/tasks/exec-started slow", "Start slow", "Kill slow", "/tasks/exit slow"]
        assert stage.told[stage.told.index("Exec slow") + 1 : -1] == expected

    play(tmp_path, scene)


CALLS = ("Kill", "End", "Delete", "Shutdown", "Start late")
SLOW = [
    (when, verb) for verb in ("start", "exec", "kill", "delete") for when in ("before", "after")
]
ORDERS = [(slow, order) for slow in SLOW for order in itertools.permutations(CALLS)]
EACH = 1 if "GRIT_LONG" in os.environ else 41  # by which all calls come first, and all are slow


async def call(stage: Stage, name: str) -> None:
    match name:
        case "Kill":
            await stage.ask("Kill", signal=signal.SIGKILL)
        case "End":
            with suppress(ProcessLookupError):
                os.kill(int((stage.directory / "init").read_text()), signal.SIGKILL)
        case "Start late":
            await stage.ask("Start", exec_id="late")
        case _:
            await stage.ask(name)


async def let_through(gate: Gate) -> None:
    """Hold up the runtime for a moment wherever it comes by."""
    while True:
        async with gate.reached():
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.01)


def assert_in_order(told: list[str], *expected: str) -> None:
    """Those of *expected* that were told were told once, and in this order."""
    assert [one for one in told if one in expected] == [one for one in expected if one in told]


@pytest.mark.parametrize(("slow", "order"), ORDERS[::EACH])
def test_calls_in_any_order(tmp_path: Path, slow: tuple[str, str], order: tuple[str, ...]) -> None:
    async def scene(stage: Stage) -> None:
        await stage.create()
        async with stage.held_up(*slow) as gate:
            slowing = asyncio.create_task(let_through(gate))
            calls = [asyncio.create_task(call(stage, "Start"))]
            await stage.add("late")
            for name in order:
                await asyncio.sleep(0.005)
                calls.append(asyncio.create_task(call(stage, name)))
            results = await asyncio.gather(*calls, return_exceptions=True)
            told = list(stage.told)
            with suppress(NotFoundError):  # it is deleted
                await stage.ask("Wait")
                await stage.ask("Delete")
            slowing.cancel()
        done = dict(zip(("Start", *order), results, strict=True))
        failed = [result for result in results if result is not None]
        assert all(isinstance(one, NotFoundError | FailedPreconditionError) for one in failed)
        assert "shut down" not in told or "/tasks/delete" in told[: told.index("shut down")]
        told = stage.told
        assert_in_order(told, "/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete")
        assert_in_order(told, "/tasks/exec-started late", "/tasks/exit late", "/tasks/exit")
        assert ("/tasks/exec-started late" in told) == ("/tasks/exit late" in told)
        if done["Kill"] is None:
            assert told.index("Kill") < told.index("/tasks/exit")
        if done["Start late"] is None:
            assert told.index("/tasks/exec-started late") < told.index("Start late")
        await stage.ask("Shutdown")
        assert "shut down" in told

    play(tmp_path, scene)
