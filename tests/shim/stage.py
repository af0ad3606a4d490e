"""A shim's Task service in this process, on a runtime that the test can hold up at any call."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from contextlib import asynccontextmanager
from typing import NamedTuple

from google.protobuf.any_pb2 import Any

from grit_runtime.host import process
from grit_runtime.proto import runc_options_pb2, task_pb2
from grit_runtime.shim.children import Children
from grit_runtime.shim.events import TOPICS
from grit_runtime.shim.runtime import Shim
from grit_runtime.shim.task import SERVICES, Task
from grit_runtime.wire.well_known import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

    from google.protobuf.message import Message

TIMEOUT_S = 20
CONTAINER = "container"

# Has a process for a container, or one more in it, at each of which it waits where there is a fifo
# of its verb's name: once when it begins, once when it has done its work. It fails where a file
# says so, with what that says.
RUNTIME = """\
#!/bin/sh
here=${0%/*}
option=
for word in "$@"; do
    case $option in --pid-file) pid_file=$word ;; --log) log=$word ;; esac
    option=$word
done
shift 6
verb=$1
for last in "$@"; do :; done
wait_at() { [ ! -p "$here/$1-$verb" ] || read -r _ <"$here/$1-$verb" || :; }
echo "$verb" >>"$here/calls"
wait_at before
if [ -e "$here/failing-$verb" ]; then
    echo "said by the runtime" >&2
    printf '{"level":"error","msg":"%s"}\\n' "$(cat "$here/failing-$verb")" >"$log"
    exit 1
fi
case $verb in
create | restore | exec)
    sleep 1000 &
    echo $! >"$pid_file"
    echo $! >>"$here/all"
    [ "$verb" = exec ] || echo $! >"$here/init"
    ;;
kill)
    whom=init
    [ "$2" != --all ] || whom=all
    for pid in $(cat "$here/$whom"); do kill -"$last" "$pid" 2>/dev/null && reached=1; done
    [ "$reached" ] || { echo "no such process" >&2; exit 1; }
    ;;
delete) kill -KILL "$(cat "$here/init")" 2>/dev/null || : ;;
esac
echo "done: $verb" >&2
wait_at after
"""


class Stage(NamedTuple):
    """What has happened is in *told*, in its order: events by their topic, answers by method."""

    directory: Path
    task: Task
    told: list[str]

    async def ask(self, method: str, **fields: object) -> Message:
        """The answer of *method* about the container, which is noted; its error is raised."""
        served = self.task.methods[SERVICES[0], method]
        try:
            return await served.handler(served.request(**{"id": CONTAINER, **fields}))
        finally:
            self.told.append(f"{method} {fields.get('exec_id', '')}".rstrip())

    async def create(self, **fields: object) -> None:
        options = runc_options_pb2.Options(
            binary_name=f"{self.directory}/runtime", io_uid=os.getuid(), io_gid=os.getgid()
        )
        await self.ask("Create", bundle=str(self.directory), options=pack(options), **fields)

    async def add(self, exec_id: str, **fields: object) -> None:
        await self.ask("Exec", exec_id=exec_id, spec=Any(value=b"{}"), **fields)

    async def status(self, exec_id: str = "") -> int:
        served = self.task.methods[SERVICES[0], "State"]
        state = await served.handler(task_pb2.StateRequest(id=CONTAINER, exec_id=exec_id))
        assert isinstance(state, task_pb2.StateResponse)
        return int(state.status)

    @asynccontextmanager
    async def held_up(self, when: str, verb: str) -> AsyncIterator[Gate]:
        """While the block runs, the runtime waits *when* ("before", "after") it does *verb*."""
        path = self.directory / f"{when}-{verb}"
        os.mkfifo(path)
        try:
            yield Gate(path)
        finally:
            path.unlink()

    def fail(self, verb: str, reason: str) -> None:
        (self.directory / f"failing-{verb}").write_text(reason)


class Gate(NamedTuple):
    """Where the runtime waits."""

    path: Path

    @asynccontextmanager
    async def reached(self) -> AsyncIterator[None]:
        """While the block runs, the runtime waits here; before, it is waited for."""
        while (fd := _opened(self.path)) is None:
            await asyncio.sleep(0.002)
        try:
            yield
        finally:
            os.close(fd)


def _opened(path: Path) -> int | None:
    """A fifo to write to, if anybody reads from it."""
    try:
        return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        assert error.errno == errno.ENXIO
        return None


def play(directory: Path, scene: Callable[[Stage], Coroutine[object, object, None]]) -> None:
    """Have *scene* on a stage in *directory*, whose processes are gone at the end."""
    (directory / "rootfs").mkdir()
    spec: dict[str, object] = {"linux": {}}  # no process namespace: nothing ends with the first
    (directory / "config.json").write_text(json.dumps(spec))
    (directory / "runtime").write_text(RUNTIME)
    (directory / "runtime").chmod(0o700)
    token = process.new_token()
    try:
        asyncio.run(asyncio.wait_for(_play(directory, scene, token), TIMEOUT_S))
    finally:
        process.wait_gone(token, deadline_s=0)


async def _play(
    directory: Path, scene: Callable[[Stage], Coroutine[object, object, None]], token: str
) -> None:
    told: list[str] = []

    def publish(event: Message) -> None:
        exec_id = getattr(event, "exec_id", "") or getattr(event, "id", "")
        told.append(f"{TOPICS[type(event)]} {exec_id.replace(CONTAINER, '')}".rstrip())

    shim = Shim("stage", Children(token), publish)
    task = Task(shim, lambda: told.append("shut down"))
    await scene(Stage(directory, task, told))
