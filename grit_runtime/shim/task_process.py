"""A process of a task: its states, its streams and how it ended."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from grit_runtime.shim.children import Exit
from grit_runtime.shim.stdio import Streams

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.shim.stdio import Names

CREATED, RUNNING, STOPPED, PAUSED, PAUSING = range(1, 6)  # containerd.v1.types.Status
DELETED = 0  # no client sees this state
WORDS = {CREATED: "created", RUNNING: "running", STOPPED: "stopped", PAUSED: "paused",
          PAUSING: "pausing"}  # fmt: skip

FAILED_EXEC = 255


class Process:
    """A container's first process, whose id is "", or one that exec added as *spec* says."""

    def __init__(self, id_: str, names: Names, spec: dict[str, Any]) -> None:
        self.id = id_
        self.spec = spec
        self.streams = Streams(names)
        self.pid = 0
        self.status = CREATED
        self.starting = (
            asyncio.Lock()
        )  # locked while it is made or started: its exit is published after that
        self.reaped: asyncio.Future[Exit] | None = None  # once done, its pid may be another's
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    @property
    def exit(self) -> Exit:
        """How the process ended; zeros if it has not."""
        return self.exited.result() if self.exited.done() else Exit(0, 0)

    def finish(self, ended: Exit) -> None:
        self.status = STOPPED
        self.exited.set_result(ended)

    def give_up(self) -> None:
        """Note that the process could not be started; those who wait for it are released."""
        self.exited.set_result(Exit(FAILED_EXEC, time.time_ns()))
