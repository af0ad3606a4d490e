"""runc: command lines, and the calls that the engine makes. Policy is elsewhere.

Source: runc v1.1.15 and v1.3.6, checkpoint.go, restore.go, state.go.
"""

import json
from contextlib import suppress
from typing import Any, NamedTuple

from grit_runtime.errors import CommandError, NotFoundError
from grit_runtime.host import process
from grit_runtime.host.process import Child


class Runc(NamedTuple):
    """A runc and its state directory. `token` marks every process it starts."""

    program: str
    global_options: tuple[str, ...]
    token: str

    def argv(self, verb: str, *arguments: str) -> list[str]:
        return [self.program, *self.global_options, verb, *arguments]

    def call(self, verb: str, *arguments: str, env: dict[str, str] | None = None) -> bytes:
        """Run one command to its end; its output, or CommandError with runc's last line."""
        return process.run(self.argv(verb, *arguments), token=self.token, env=env)


class State(NamedTuple):
    status: str  # created, running, paused or stopped
    pid: int
    bundle_dir: str


def state(runc: Runc, container_id: str) -> State:
    """What runc knows of a container; NotFoundError when it knows none."""
    try:
        output = runc.call("state", container_id)
    except CommandError as error:
        if "does not exist" in str(error):
            raise NotFoundError(f"container {container_id}: runc knows no such container") from None
        raise
    answer: dict[str, Any] = json.loads(output)
    return State(answer["status"], answer["pid"], answer["bundle"])


def pause(runc: Runc, container_id: str) -> None:
    runc.call("pause", container_id)


def resume(runc: Runc, container_id: str) -> None:
    """Thaw the container if it is frozen; one that is gone or runs already is left alone."""
    try:
        runc.call("resume", container_id)
    except CommandError:
        with suppress(NotFoundError):
            if state(runc, container_id).status == "paused":
                raise


def stop(runc: Runc, container_id: str) -> None:
    """Kill the container's processes, frozen or not; one that has ended is no error."""
    try:
        if state(runc, container_id).status == "stopped":
            return
    except NotFoundError:
        return
    runc.call("kill", container_id, "KILL")
    resume(runc, container_id)  # on cgroup v1 a frozen task does not die


def ask_version(runc: Runc) -> Child:
    """Start runc, which takes a moment; `version` hears its answer."""
    return process.start(runc.argv("--version"), token=runc.token)


def version(asked: Child) -> str:
    """``1.3.6+ds1`` of ``runc version 1.3.6+ds1``."""
    return process.output(asked).decode().split("\n", 1)[0].rpartition(" ")[2]


def ask_flags(runc: Runc, verb: str) -> Child:
    """Start runc, which takes a moment; `knows` hears what flags the command has."""
    return process.start(runc.argv(verb, "--help"), token=runc.token)


def knows(asked: Child, flag: str) -> bool:
    """Whether the command that was asked about has *flag*."""
    return flag in process.output(asked).decode().split()


def delete(runc: Runc, container_id: str) -> None:
    """Kill and forget the container; one that is not there is no error."""
    runc.call("delete", "--force", container_id)


def last_error(log_path: str) -> str | None:
    """The last error in a log that runc wrote with ``--log-format json``."""
    with suppress(FileNotFoundError), open(log_path, encoding="utf-8") as file:
        entries = [json.loads(line) for line in file if line.startswith("{")]
        errors = [entry["msg"] for entry in entries if entry.get("level") == "error"]
        return errors[-1] if errors else None
    return None
