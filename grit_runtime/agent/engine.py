"""A checkpoint in a process of its own: the engine forks and traces, and threads bear neither."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import suppress

from grit_runtime import config as configuration
from grit_runtime.errors import (
    CommandError,
    GritError,
    ManifestError,
    PodStateError,
    of_reason,
    one_line,
    reason,
)
from grit_runtime.files import checkpoint_dir, confine
from grit_runtime.host import linux, process
from grit_runtime.host.descriptor import closing_fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from grit_runtime.agent.job import Job
    from grit_runtime.agent.progress import Progress
    from grit_runtime.config import Config


_STDERR = 2


def take(progress: Progress, checkpoint_root: str) -> None:
    """Take the job's checkpoint. Blocks; a job that is to stop has what was begun undone.

    Unless that is too late: a pod that runs on has a sealed checkpoint then, as was asked for. One
    that was to be held runs on, and is not.
    """
    job = progress.job
    wanted = {
        name: getattr(job, name)
        for name in ("target", "name", "after", "replace", "pod_is_going", "strict")
    }
    argv = process.python(__name__, json.dumps({**wanted, "parent": os.getpid()}))
    out_fd, write_fd = os.pipe()
    with closing_fd(write_fd), closing_fd(os.open(os.devnull, os.O_RDONLY)) as null_fd:
        # Not by fork: gRPC's threads have locks that a fork of this process would inherit held.
        pid = process.spawn_apart(argv, os.environ, null_fd, write_fd, _STDERR)
    with open(out_fd, "rb") as out:
        try:
            progress.killing(lambda: os.kill(pid, signal.SIGTERM))
            printed = out.read()
        finally:
            progress.killing(None)
            status = process.wait(pid)
    if not printed:
        if job.after == "running" and _is_sealed(job, checkpoint_root):
            return
        progress.check()  # it ends so when it is told to
        raise CommandError(f"the engine of checkpoint {job.name} ended with status {status}")
    answer = json.loads(printed.splitlines()[-1])
    if "reason" in answer:
        raise of_reason(answer["reason"])(answer["text"])


def _is_sealed(job: Job, checkpoint_root: str) -> bool:
    path = f"{checkpoint_root}/{job.namespace}/{job.name}"
    with suppress(OSError, ManifestError), closing_fd(confine.open_dir(path)) as dir_fd:
        return checkpoint_dir.read_manifest(dir_fd, path).manifest.created >= job.begun
    return False


def main(argument: str) -> None:
    """What the process does: the last line that it prints says how it ended."""
    signal.signal(signal.SIGTERM, _terminate)
    wanted = json.loads(argument)
    linux.die_with_parent(wanted["parent"])
    try:
        perform(wanted, configuration.load())
        answer = {}
    except (GritError, OSError) as error:
        answer = {"reason": reason(error), "text": one_line(error)}
    sys.stdout.write(json.dumps(answer) + "\n")


def perform(wanted: dict[str, Any], config: Config) -> str:
    """Take a checkpoint as `grit checkpoint` does; its directory."""
    from grit_runtime.checkpoint import holds, take
    from grit_runtime.checkpoint.order import Order
    from grit_runtime.host.containerd import Containerd
    from grit_runtime.restore import attempts

    holds.recover()
    attempts.recover()
    with Containerd(config.containerd_address) as containerd:
        pod = containerd.find(wanted["target"])
        version = containerd.version()
    if wanted.get("uid", pod.uid) != pod.uid:
        raise PodStateError(
            f"pod {wanted['target']} has uid {pod.uid}, expected {wanted['uid']}: it is another "
            "pod of that name; ask for that one"
        )
    order = Order(
        pod=pod,
        name=wanted["name"],
        after=wanted["after"],
        replace=wanted["replace"],
        pod_is_going=wanted["pod_is_going"],
        capture=frozenset(),
        containerd_version=version,
        strict=wanted["strict"],
    )
    return take.checkpoint(order, config).path


def _terminate(_number: int, _frame: object) -> NoReturn:
    """Raise an exception, so that what has begun is undone."""
    sys.exit(128 + signal.SIGTERM)
