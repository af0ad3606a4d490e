"""runc: command lines, and the calls that the engine makes. Policy is elsewhere.

Source: runc v1.1.15 and v1.3.6, checkpoint.go, restore.go, state.go.
"""

from __future__ import annotations

import glob
import json
import os
import signal
from contextlib import suppress
from typing import Any

from grit_runtime import config
from grit_runtime.errors import CommandError, NotFoundError
from grit_runtime.host import cgroup, process, procfs, programs
from grit_runtime.model import cri
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.host.process import Child

# How runc's last error ends if CRIU died without an answer: while runc read one, with a message of
# runc unread, or while runc wrote (libcontainer/criu_linux.go criuSwrk). CRIU answers errors that
# it finds itself.
CUT_OFF = ("EOF", "connection reset by peer", "broken pipe")

_ROOT = "/run/runc"  # runc's own default


class Runc(NamedTuple):
    """A runc and its state directory. `token` marks every process it starts."""

    program: str
    global_options: tuple[str, ...]
    token: str

    @property
    def root(self) -> str:
        """The directory with its state of containers, by the caller's option."""
        roots = [word for word in self.global_options if word.startswith("--root=")]
        return roots[0].removeprefix("--root=") if roots else _ROOT

    def argv(self, verb: str, *arguments: str) -> list[str]:
        return [self.program, *self.global_options, verb, *arguments]

    def call(self, verb: str, *arguments: str, env: dict[str, str] | None = None) -> bytes:
        """Run one command to its end; its output, or CommandError with runc's last line."""
        return process.run(self.argv(verb, *arguments), token=self.token, env=env)


def installed(root: str, token: str) -> Runc:
    """The node's runc, with its state of containers in *root*."""
    return Runc(programs.find("runc", config.load().runc), (f"--root={root}",), token)


class State(NamedTuple):
    status: str  # created, running, paused or stopped
    pid: int
    bundle_dir: str


def state(runc: Runc, container_id: str) -> State:
    """What runc knows about a container; NotFoundError if it does not know it."""
    try:
        output = runc.call("state", container_id)
    except CommandError as error:
        if "does not exist" in str(error):
            raise NotFoundError(f"container {container_id}: runc knows no such container") from None
        raise
    answer: dict[str, Any] = json.loads(output)
    return State(answer["status"], answer["pid"], answer["bundle"])


def is_alive(runc: Runc, container_id: str) -> bool:
    """Whether a container runs, or is paused."""
    try:
        return state(runc, container_id).status != "stopped"
    except NotFoundError:
        return False


def runs_of_pod(runc: Runc, pod_uid: str) -> bool:
    """Whether a container of the pod runs, paused or not; its sandbox does not count.

    Reads runc's own state files (libcontainer/container.go BaseState), since calling runc for each
    container of a node takes too long.
    """
    of_pod = f'{cri.SANDBOX_UID}={pod_uid}"'.encode()
    of_container = f'{cri.CONTAINER_TYPE}=container"'.encode()
    for path in glob.glob(f"{glob.escape(runc.root)}/*/state.json"):
        try:
            with open(path, "rb") as file:
                data = file.read()
        except FileNotFoundError:  # the container has just been deleted
            continue
        if of_pod in data and of_container in data:
            state = json.loads(data)
            if procfs.started_ticks(state["init_process_pid"]) == state["init_process_start"]:
                return True
    return False


def pause(runc: Runc, container_id: str) -> None:
    runc.call("pause", container_id)


def try_pause(runc: Runc, container_id: str) -> bool:
    """Freeze the container; False, and it runs again, if one of its tasks does not freeze."""
    try:
        pause(runc, container_id)
    except CommandError as error:
        if "freeze" not in str(error):  # v1: "unable to freeze", v2: "waiting for the cgroup to"
            raise
        resume(runc, container_id)
        return False
    return True


def resume(runc: Runc, container_id: str) -> None:
    """Thaw the container if it is frozen; it is no error if it is gone or runs already."""
    try:
        runc.call("resume", container_id)
    except CommandError:
        with suppress(NotFoundError):
            if state(runc, container_id).status == "paused":
                raise


def stop(runc: Runc, container_id: str) -> bool:
    """Kill the container's processes, frozen or not; False if it had ended before.

    All get SIGKILL before any is thawed: runc would kill only the first process, and the others
    would run until the kernel has ended it. A frozen task of cgroup v1 dies when it is thawed.
    """
    try:
        container = state(runc, container_id)
    except NotFoundError:
        return False
    if container.status == "stopped":
        return False
    for pid in {container.pid, *cgroup.pids(cgroup.of(container.pid))}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    resume(runc, container_id)
    return True


def start_version(runc: Runc) -> Child:
    """Start runc, which takes a moment; `read_version` reads its answer."""
    return process.start(runc.argv("--version"), token=runc.token)


def read_version(asked: Child) -> str:
    """``1.3.6+ds1`` of ``runc version 1.3.6+ds1``."""
    return process.output(asked).decode().split("\n", 1)[0].rpartition(" ")[2]


def start_flags(runc: Runc, verb: str) -> Child:
    """Start runc, which takes a moment; `read_flags` reads the flags of the command."""
    return process.start(runc.argv(verb, "--help"), token=runc.token)


def read_flags(asked: Child, flags: tuple[str, ...]) -> frozenset[str]:
    """Those of *flags* that the command of `start_flags` has."""
    return frozenset(flags) & set(process.output(asked).decode().split())


def delete(runc: Runc, container_id: str) -> None:
    """Kill and delete the container; it is no error if there is none."""
    runc.call("delete", "--force", container_id)


def last_error(log_path: str) -> str | None:
    """The last error in a log that runc wrote with ``--log-format json``."""
    last = None
    with suppress(FileNotFoundError), open(log_path, "rb") as file:
        for line in file:
            with suppress(ValueError):  # a runc that was killed leaves half a line
                entry = json.loads(line)
                if isinstance(entry, dict) and entry.get("level") == "error":
                    last = str(entry.get("msg"))
    return last
