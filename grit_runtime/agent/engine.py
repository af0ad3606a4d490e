"""What touches pods, in a process of its own: it forks and traces, and threads bear neither.

Each call is a function of this module, by its name, of a dict and the configuration. What an agent
in a pod has begun is not in that pod's cgroup: CRIU would be killed with the agent, in the middle
of a task, and the driver's devices would be out of reach.
"""

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
    HeldError,
    ManifestError,
    PodStateError,
    of_reason,
    one_line,
    reason,
)
from grit_runtime.files import checkpoint_dir, confine
from grit_runtime.host import cgroup, linux, process
from grit_runtime.host.descriptor import closing_fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from grit_runtime.agent.job import Job
    from grit_runtime.agent.progress import Progress
    from grit_runtime.config import Config
    from grit_runtime.host.containerd import Pod
    from grit_runtime.model.hold import Hold

_STDERR = 2


def take(progress: Progress, checkpoint_root: str) -> None:
    """Take the job's checkpoint. Blocks; a job that is to stop has what was begun undone.

    Unless that is too late: then the checkpoint is sealed, and its pod as was asked for.
    """
    job = progress.job
    names = (
        "target",
        "name",
        "after",
        "replace",
        "pod_is_going",
        "strict",
        "uid",
        "capture",
        "tcp",
        "nccl",
    )
    wanted = {name: getattr(job, name) for name in names}
    status, _ = _called("perform", wanted, progress.killing)
    # What a killed engine has sealed is not final yet, if its pod was not to run on.
    if status is None or (
        (status >= 0 or job.after == "running") and _is_sealed(job, checkpoint_root)
    ):
        return
    progress.check()  # it ends so when it is told to
    raise CommandError(f"the engine of checkpoint {job.name} ended with status {status}")


def resumed(target: str, uid: str, checkpoint: str) -> None:
    """Let the held pod run on; nothing if it runs. NotFoundError if this node has no such pod,
    HeldError if it is held for another *checkpoint* than that, if one is named."""
    _answer("resume", target=target, uid=uid, checkpoint=checkpoint)


def recovered() -> None:
    """Undo what killed checkpoints and restores have left on this node."""
    _answer("recover")


def facts_here() -> str:
    """What `grit compat --facts` prints here."""
    return str(_answer("facts"))


def _answer(call: str, **wanted: str) -> Any:
    status, answer = _called(call, wanted, lambda _: None)
    if status is not None:
        raise CommandError(f"the engine ended with status {status}; look at the agent's log")
    return answer


def _called(
    call: str, wanted: dict[str, Any], killing: Callable[[Callable[[], None] | None], None]
) -> tuple[int | None, Any]:
    """Have a process do it, and raise its error: None and its answer, or the status of one that
    ended without.

    *killing* gets what ends it, while it runs.
    """
    argument = json.dumps({"call": call, "wanted": wanted, "parent": os.getpid()})
    argv = process.python(__name__, argument)
    out_fd, write_fd = os.pipe()
    with closing_fd(write_fd), closing_fd(os.open(os.devnull, os.O_RDONLY)) as null_fd:
        # Not by fork: gRPC's threads have locks that a fork of this process would inherit held.
        pid = process.spawn_apart(argv, os.environ, null_fd, write_fd, _STDERR)
    with open(out_fd, "rb") as out:
        try:
            killing(lambda: os.kill(pid, signal.SIGTERM))
            printed = out.read()
        finally:
            killing(None)
            status = process.wait(pid)
    if not printed:
        return status, None
    answer = json.loads(printed.splitlines()[-1])
    if "reason" in answer:
        raise of_reason(answer["reason"])(answer["text"])
    return None, answer["answer"]


def _is_sealed(job: Job, checkpoint_root: str) -> bool:
    path = f"{checkpoint_root}/{job.namespace}/{job.name}"
    with suppress(OSError, ManifestError), closing_fd(confine.open_dir(path)) as dir_fd:
        return checkpoint_dir.read_manifest(dir_fd, path).manifest.created >= job.begun
    return False


def main(argument: str) -> None:
    """What the process does: the last line that it prints says how it ended."""
    signal.signal(signal.SIGTERM, _terminate)
    asked = json.loads(argument)
    linux.die_with_parent(asked["parent"])
    calls: dict[str, Callable[[dict[str, Any], Config], object]] = {
        "perform": perform,
        "resume": resume,
        "recover": recover,
        "facts": facts,
    }
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ:
            cgroup.enter_that_of(1)
        answer = {"answer": calls[asked["call"]](asked["wanted"], configuration.load())}
    except (GritError, OSError) as error:
        answer = {"reason": reason(error), "text": one_line(error)}
    sys.stdout.write(json.dumps(answer) + "\n")


def perform(wanted: dict[str, Any], config: Config) -> str:
    """Take a checkpoint as `grit checkpoint` does; its directory."""
    from grit_runtime.checkpoint import take
    from grit_runtime.checkpoint.order import Order
    from grit_runtime.host.containerd import Containerd
    from grit_runtime.model.annotations import NCCL, TCP, capture

    recover()
    with Containerd(config.containerd_address) as containerd:
        pod = containerd.find(wanted["target"])
        version = containerd.version()
    _require(pod, wanted["uid"])
    decided = {TCP: wanted["tcp"], NCCL: wanted["nccl"]}
    order = Order(
        pod=pod,
        name=wanted["name"],
        after=wanted["after"],
        replace=wanted["replace"],
        pod_is_going=wanted["pod_is_going"],
        capture=capture(wanted["capture"]),
        containerd_version=version,
        strict=wanted["strict"],
        decided={key: value for key, value in decided.items() if value},
    )
    return take.checkpoint(order, config).path


def resume(wanted: dict[str, Any], config: Config) -> None:
    """As `grit resume` does, but a pod that runs is none of its errors."""
    from grit_runtime.checkpoint import holds
    from grit_runtime.host.containerd import Containerd
    from grit_runtime.pod import held_pods

    recover()
    target, uid = wanted["target"], wanted["uid"]
    held = [hold for hold in held_pods.every() if hold.name == target]
    for hold in held:
        if uid in {"", hold.pod_uid}:
            _require_held_for(hold, wanted["checkpoint"])
            holds.resume(hold.pod_uid)
            return
    with Containerd(config.containerd_address) as containerd:
        _require(containerd.find(target), uid)


def recover(*_: object) -> None:
    from grit_runtime.checkpoint import undoing
    from grit_runtime.restore import attempts

    undoing.recover()
    attempts.recover()


def facts(_wanted: dict[str, Any], config: Config) -> str:
    from grit_runtime.model import compatibility
    from grit_runtime.nvidia import node_facts

    return compatibility.dump_facts(node_facts.here(config, with_gpus=True))


def _require(pod: Pod, uid: str) -> None:
    """PodStateError unless the pod is the one that was meant."""
    if uid not in {"", pod.uid}:
        raise PodStateError(
            f"pod {pod.namespace}/{pod.name} has uid {pod.uid}, expected {uid}: it is another "
            "pod of that name; ask for that one"
        )


def _require_held_for(hold: Hold, checkpoint: str) -> None:
    """HeldError if it is another checkpoint that the pod is held for."""
    held_for = hold.checkpoint.rpartition("/")[2]
    if checkpoint not in {"", held_for}:
        raise HeldError(
            f"pod {hold.name} is held for checkpoint {held_for}, expected {checkpoint}: it is let "
            "go with that one"
        )


def _terminate(_number: int, _frame: object) -> NoReturn:
    """Raise an exception, so that what has begun is undone."""
    sys.exit(128 + signal.SIGTERM)
