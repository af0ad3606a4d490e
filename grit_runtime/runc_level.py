"""runc's own `checkpoint` and `restore`, without a manifest.

For callers of runc itself, containerd's task API among them. The caller's flags and paths are
passed through; grit adds what a container with GPU memory needs, and reads back what was restored
before it runs.
"""

from __future__ import annotations

import os
import select
from functools import partial
from pathlib import Path
from typing import Any

from grit_runtime import log, paths
from grit_runtime.checkpoint import standstill, undoing
from grit_runtime.dump import images, readback_images
from grit_runtime.errors import CommandError
from grit_runtime.files import confine
from grit_runtime.host import cgroup, criu, journal, process, runc
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import checkpoint_steps as steps
from grit_runtime.nvidia import device_nodes, gpu_driver, suspension, threads
from grit_runtime.pod import bundle, running_container
from grit_runtime.startup.named import NamedTuple
from grit_runtime.tasks import readback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from grit_runtime.host.journal import Journal
    from grit_runtime.host.runc import Runc
    from grit_runtime.pod.running_container import RunningContainer
    from grit_runtime.tasks.readback import Restored


CONFIG_FILE = "CRIU_CONFIG_FILE"

_LOOK_EVERY_MS = 10


class Call(NamedTuple):
    """The caller's command line, and the container that it names."""

    argv: list[str]
    container_id: str
    runc: Runc
    spec: dict[str, Any]


class PidFile(NamedTuple):
    """Where runc is to write its pid file, and the inode of the file there before."""

    path: str
    inode_before: int


def checkpoint(call: Call, criu_dir: str, *, leave_running: bool) -> int | None:
    """runc's exit status, or None if the container has no CUDA process: then runc is enough.

    *criu_dir* is where the caller has CRIU write its log.
    A container that the caller has paused is thawed for the driver, which needs its threads, and
    paused again for the dump and afterwards.
    """
    container = running_container.read(call.runc, "", call.container_id)
    if not suspension.has_users(container):
        return None
    pod_dir = f"{journal.PODS_DIR}/{call.container_id}"
    path = f"{pod_dir}/{journal.CHECKPOINT}"
    pod_journal = undoing.begin(path, f"container {call.container_id}")
    try:
        pod_journal.record(steps.Begin(call.runc.token, call.runc.root, criu_dir=criu_dir))
        status = _suspended(call, container, pod_journal)
    except BaseException:
        undoing.undo(pod_journal)
        raise
    if status == 0 and not leave_running:
        undoing.end(pod_journal)
    else:
        undoing.undo(pod_journal)
    return status


def restore(call: Call, bundle_dir: str, images_dir: str) -> int:
    """Restore with --detach; runc's exit status.

    If it is 0, the container is what was dumped into *images_dir*, and its GPU memory is back and
    verified running.
    """
    config_path = write_config(call)
    try:
        status = _run(call, {CONFIG_FILE: config_path})
    finally:
        os.unlink(config_path)
    if status == 0:
        init_pid = runc.state(call.runc, call.container_id).pid
        delete = partial(runc.delete, call.runc, call.container_id)
        _bring_to_life(init_pid, call, bundle_dir, images_dir, delete)
    return status


def write_config(call: Call) -> str:
    """Path of a copy of the caller's CRIU configuration, if it has one, with grit's line added."""
    path = f"{paths.RUN_DIR}/criu-{call.runc.token}.conf"
    os.makedirs(paths.RUN_DIR, mode=0o700, exist_ok=True)
    callers_own = os.environ.get(CONFIG_FILE)
    lines = Path(callers_own).read_text().splitlines() if callers_own else []
    criu.write_config(path, [*lines, "leave-stopped"])
    return path


def attend(call: Call, bundle_dir: str, images_dir: str, pid_file: PidFile, runc_fd: int) -> None:
    """Do what `restore` does, beside a runc without --detach, whose pidfd is *runc_fd*.

    Blocks until the tasks run, or runc has failed. Tasks that are not what was dumped are killed;
    runc then ends as it does for any container.
    """
    if not _is_written(pid_file, runc_fd):
        return
    init_pid = int(Path(pid_file.path).read_text())
    _bring_to_life(init_pid, call, bundle_dir, images_dir, partial(_kill_all, init_pid))


def _is_written(pid_file: PidFile, runc_fd: int) -> bool:
    """Wait until runc has written its pid file; False if runc ends without it."""
    poll = select.poll()
    poll.register(runc_fd, select.POLLIN)
    while inode(pid_file.path) == pid_file.inode_before:
        if poll.poll(_LOOK_EVERY_MS):
            return False
    return True


def inode(path: str) -> int:
    """The inode number of the file at *path*; 0 if there is none."""
    try:
        return os.lstat(path).st_ino
    except FileNotFoundError:
        return 0


def _kill_all(init_pid: int) -> None:
    for pid in {init_pid, *cgroup.pids(cgroup.of(init_pid))}:
        process.kill_and_wait(pid)


def _bring_to_life(
    init_pid: int, call: Call, bundle_dir: str, images_dir: str, give_up: Callable[[], None]
) -> None:
    try:
        _let_go_on(init_pid, call, bundle_dir, images_dir)
    except BaseException as error:
        give_up()
        raise CommandError(f"container {call.container_id}: {error}") from error


def _let_go_on(init_pid: int, call: Call, bundle_dir: str, images_dir: str) -> None:
    pids: list[int] = []
    try:
        with readback.held(init_pid) as restored:
            with closing_fd(confine.open_dir(images_dir)) as images_fd:
                dump = images.read(images_fd)
                more = readback_images.read(images_fd, dump)
                readback.check(restored, more, dump, bundle.live(bundle_dir, call.spec))
            readback.give_streams(restored, call.spec)
            pids = gpu_driver.cuda_pids(restored.pids.values())
            _revive_gpus(pids, restored, call)
            readback.go_on(restored, dump)
    except BaseException:
        if pids:  # nobody holds them any more, so that they can be held for this
            suspension.suspend_to_kill(call.runc.token, pids)
        raise


def _revive_gpus(pids: list[int], restored: Restored, call: Call) -> None:
    if pids:
        device_nodes.replace_nvidia_nodes(restored.init_pid, call.spec)
        suspension.bring_back_standing(call.runc.token, pids, restored.holder)


def _suspended(call: Call, container: RunningContainer, pod_journal: Journal[steps.Step]) -> int:
    """Run the caller's command while the container's GPU memory is in its host memory."""
    if container.paused:
        pod_journal.record(steps.Thaw(call.container_id))
        runc.resume(call.runc, call.container_id)
    with suspension.opened_driver(call.runc.token) as driver:
        survey = suspension.survey(driver, [container]) if driver else None
        kept = survey.kept_pids if survey else []
        if survey and (survey.running_pids or kept):
            suspension.refuse_unrestorable(survey, [container])
            standstill.record_taken(pod_journal, survey)
            if kept:
                standstill.record_standing(pod_journal, kept)
            token = call.runc.token
            holder, _ = suspension.suspend(survey, [container], token, log.Timeline())
            with threads.until_frozen(holder, kept):
                _freeze(call, pod_journal)
        elif container.paused:
            _freeze(call, pod_journal)
    return _run(call)


def _freeze(call: Call, pod_journal: Journal[steps.Step]) -> None:
    pod_journal.record(steps.Freeze(call.container_id))
    runc.pause(call.runc, call.container_id)


def _run(call: Call, env: dict[str, str] | None = None) -> int:
    argv = [call.runc.program, *call.argv[1:]]
    return process.run_attached(argv, token=call.runc.token, env=env)
