"""Every state of a process, and what each call makes of it: the state after it, or a refusal.

As in containerd v2.1.9 cmd/containerd-shim-runc-v2/process/init_state.go and exec_state.go, but
that an exec which could not be started is not started again (there a second failure is a panic).
"""

from __future__ import annotations

import signal

import pytest
from google.protobuf.any_pb2 import Any

from grit_runtime.errors import CommandError, FailedPreconditionError, GritError, NotFoundError
from grit_runtime.proto.task_types_pb2 import CREATED, PAUSED, RUNNING, STOPPED
from tests.shim.stage import Stage, play

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

REFUSED, GONE = FailedPreconditionError, NotFoundError
DELETED = 0

EXEC = "exec"

Outcome = int | type[GritError]

# How a container's first process comes into a state: the calls one after the other.
LIVES: dict[str, list[str]] = {
    "created": ["Create"],
    "to be restored": ["Create from checkpoint"],
    "running": ["Create", "Start"],
    "restored": ["Create from checkpoint", "Start"],
    "paused": ["Create", "Start", "Pause"],
    "resumed": ["Create", "Start", "Pause", "Resume"],
    "stopped": ["Create", "Start", "End"],
    "stopped before its start": ["Create", "End"],
    "stopped while paused": ["Create", "Start", "Pause", "End"],
    "deleted": ["Create", "Delete"],
}

OF_CREATED: dict[str, Outcome] = {
    "Start": RUNNING, "Delete": DELETED, "Pause": REFUSED, "Resume": REFUSED, "Update": CREATED,
    "Checkpoint": REFUSED, "Exec": CREATED, "Kill": CREATED, "End": STOPPED,
}  # fmt: skip
OF_RUNNING: dict[str, Outcome] = {
    "Start": REFUSED, "Delete": REFUSED, "Pause": PAUSED, "Resume": REFUSED, "Update": RUNNING,
    "Checkpoint": RUNNING, "Exec": RUNNING, "Kill": RUNNING, "End": STOPPED,
}  # fmt: skip
OF_PAUSED: dict[str, Outcome] = {
    "Start": REFUSED, "Delete": REFUSED, "Pause": REFUSED, "Resume": RUNNING, "Update": PAUSED,
    "Checkpoint": PAUSED, "Exec": REFUSED, "Kill": PAUSED, "End": STOPPED,
}  # fmt: skip
OF_STOPPED: dict[str, Outcome] = {
    "Start": REFUSED, "Delete": DELETED, "Pause": REFUSED, "Resume": REFUSED, "Update": REFUSED,
    "Checkpoint": REFUSED, "Exec": REFUSED, "Kill": GONE, "End": GONE,
}  # fmt: skip
STATES: dict[str, dict[str, Outcome]] = {
    "created": OF_CREATED,
    "to be restored": {**OF_CREATED, "Exec": REFUSED, "Kill": GONE, "End": GONE},
    "running": OF_RUNNING,
    "restored": OF_RUNNING,
    "paused": OF_PAUSED,
    "resumed": OF_RUNNING,
    "stopped": OF_STOPPED,
    "stopped before its start": OF_STOPPED,
    "stopped while paused": OF_STOPPED,
    "deleted": dict.fromkeys(OF_CREATED, GONE),
}

# The same of an exec in a container that runs.
EXEC_LIVES: dict[str, list[str]] = {
    "added": ["Exec"],
    "running": ["Exec", "Start"],
    "stopped": ["Exec", "Start", "End"],
    "not to be started": ["Exec", "Start in vain"],
    "deleted": ["Exec", "Delete"],
}
EXEC_STATES: dict[str, dict[str, Outcome]] = {
    "added": {
        "Start": RUNNING, "Delete": DELETED, "Kill": REFUSED, "End": REFUSED, "ResizePty": CREATED,
    },
    "running": {
        "Start": REFUSED, "Delete": REFUSED, "Kill": RUNNING, "End": STOPPED, "ResizePty": RUNNING,
    },
    "stopped": {
        "Start": REFUSED, "Delete": DELETED, "Kill": GONE, "End": GONE, "ResizePty": REFUSED,
    },
    "not to be started": {
        "Start": REFUSED, "Delete": DELETED, "Kill": REFUSED, "End": REFUSED, "ResizePty": CREATED,
    },
    "deleted": dict.fromkeys(("Start", "Delete", "Kill", "End", "ResizePty"), GONE),
}  # fmt: skip


def cases(states: dict[str, dict[str, Outcome]]) -> list[tuple[str, str, Outcome]]:
    return [
        (state, call, after) for state, calls in states.items() for call, after in calls.items()
    ]


async def make(stage: Stage, call: str, exec_id: str = "") -> None:
    """One call of a life."""
    match call:
        case "Create":
            await stage.create()
        case "Create from checkpoint":
            await stage.create(checkpoint=str(stage.directory))
        case "Exec":
            await stage.add(EXEC)
        case "Start in vain":
            stage.fail("exec", "no such program")
            with pytest.raises(CommandError):
                await stage.ask("Start", exec_id=exec_id)
        case "Kill":
            await stage.ask("Kill", exec_id=exec_id, signal=signal.SIGCONT)
        case "End":
            await stage.ask("Kill", exec_id=exec_id, signal=signal.SIGKILL)
            await stage.ask("Wait", exec_id=exec_id)
        case "Update":
            await stage.ask("Update", resources=Any(value=b"{}"))
        case "Checkpoint":
            await stage.ask("Checkpoint", path=str(stage.directory))
        case "ResizePty":
            await stage.ask("ResizePty", exec_id=exec_id, width=80, height=24)
        case _:
            await stage.ask(call, **({"exec_id": exec_id} if exec_id else {}))


async def status(stage: Stage, exec_id: str) -> int:
    try:
        return await stage.status(exec_id)
    except NotFoundError:
        return DELETED


async def assert_leads_to(stage: Stage, call: str, after: Outcome, exec_id: str) -> None:
    if isinstance(after, int):
        await make(stage, call, exec_id)
        assert await status(stage, exec_id) == after
    else:
        before = await status(stage, exec_id)
        with pytest.raises(after):
            await make(stage, call, exec_id)
        assert await status(stage, exec_id) == before


@pytest.mark.parametrize(("state", "call", "after"), cases(STATES))
def test_a_containers_first_process(tmp_path: Path, state: str, call: str, after: Outcome) -> None:
    async def scene(stage: Stage) -> None:
        for step in LIVES[state]:
            await make(stage, step)
        await assert_leads_to(stage, call, after, "")

    play(tmp_path, scene)


@pytest.mark.parametrize(("state", "call", "after"), cases(EXEC_STATES))
def test_a_process_that_was_added(tmp_path: Path, state: str, call: str, after: Outcome) -> None:
    async def scene(stage: Stage) -> None:
        await make(stage, "Create")
        await make(stage, "Start")
        for step in EXEC_LIVES[state]:
            await make(stage, step, EXEC)
        await assert_leads_to(stage, call, after, EXEC)

    play(tmp_path, scene)


def test_a_process_may_be_added_before_the_first_one_starts(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        await make(stage, "Create")
        await make(stage, "Exec")
        await assert_leads_to(stage, "Start", RUNNING, EXEC)
        assert await stage.status() == CREATED

    play(tmp_path, scene)


def test_what_is_added_to_a_paused_container_is_paused_with_it(tmp_path: Path) -> None:
    async def scene(stage: Stage) -> None:
        for step in ("Create", "Start", "Exec"):
            await make(stage, step)
        await make(stage, "Start", EXEC)
        await make(stage, "Pause")
        assert await stage.status(EXEC) == PAUSED
        await make(stage, "Resume")
        assert await stage.status(EXEC) == RUNNING

    play(tmp_path, scene)


def test_a_container_that_ends_while_it_is_paused_is_resumed(tmp_path: Path) -> None:
    """Whatever else it has would stay frozen, and on cgroup v1 would not even die."""

    async def scene(stage: Stage) -> None:
        for step in LIVES["stopped while paused"]:
            await make(stage, step)
        calls = (tmp_path / "calls").read_text().split()
        assert calls == ["create", "start", "pause", "kill", "resume", "kill"]

    play(tmp_path, scene)
