"""A container checkpointed and restored by the node's runc and CRIU, for the trial's sake."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from contextlib import suppress

from grit_runtime import paths
from grit_runtime.doctor.finding import Finding, ok
from grit_runtime.errors import CommandError
from grit_runtime.host import criu, mounts, process, runc
from grit_runtime.host.descriptor import closing_fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.doctor.node import Node

_DIR = f"{paths.RUN_DIR}/doctor"
_ID = "grit-doctor"
_BINDS = ("/bin", "/lib", "/lib64", "/sbin", "/usr")
# In one process: a shell waits in vfork for what it starts, and cannot be dumped then.
_COUNT = "n=0; while :; do n=$((n + 1)); echo $n >/count/n; done"


def dump_and_restore(node: Node) -> Finding:
    """Its process counts into a file, and has to go on where it was.

    What a killed trial has left is ended first; two at a time wait for each other.
    """
    criu.prefer(node.config.criu)
    os.makedirs(_DIR, mode=0o700, exist_ok=True)
    tool = runc.installed(f"{_DIR}/state", process.new_token())
    with closing_fd(os.open(_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as lock_fd:
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        _clear(tool)
        try:
            _write_bundle()
            return _tried(tool)
        finally:
            _clear(tool)


def _clear(tool: runc.Runc) -> None:
    with suppress(CommandError):  # there is none
        runc.delete(tool, _ID)
    mounts.unmount_below(_DIR)  # a runc that was killed leaves some
    for entry in os.scandir(_DIR):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)


def _tried(tool: runc.Runc) -> Finding:
    images = ("--image-path", f"{_DIR}/images", "--work-path", _DIR)
    bundle = ("--bundle", _DIR)
    _call(tool, "run", "--detach", *bundle, _ID)
    _wait_for_count(above=0)
    begin = time.monotonic()
    _call(tool, "checkpoint", *images, _ID)
    dumped = time.monotonic()
    before = _count()
    _call(tool, "restore", "--detach", *bundle, *images, _ID)
    restored = time.monotonic()
    after = _wait_for_count(above=before)
    return ok(
        f"a container was dumped at {before} in {dumped - begin:.2f} s, restored in "
        f"{restored - dumped:.2f} s, and has gone on to {after}"
    )


def _call(tool: runc.Runc, verb: str, *arguments: str) -> None:
    """The container keeps the streams of its runc, so nobody may wait for their end."""
    log_path = f"{_DIR}/runc.log"
    tool = tool._replace(
        global_options=(*tool.global_options, "--log", log_path, "--log-format", "json")
    )
    argv = tool.argv(verb, *arguments)
    with open(os.devnull, "w", encoding="ascii") as file:
        null = file.fileno()
        pid = process.spawn(argv, token=tool.token, stdin=os.devnull, stdout=null, stderr=null)
        status = process.wait(pid)
    if status != 0:
        told = criu.decisive_line(f"{_DIR}/{'dump' if verb == 'checkpoint' else verb}.log")
        raise CommandError(
            f"runc {verb} of a small container: {told or runc.last_error(log_path) or status}"
        )


def _wait_for_count(*, above: int) -> int:
    end = time.monotonic() + 5
    while (count := _count()) <= above:
        if time.monotonic() > end:
            raise CommandError(f"the container does not count on from {above}")
        time.sleep(0.01)
    return count


def _count() -> int:
    with suppress(FileNotFoundError), open(f"{_DIR}/count/n", encoding="ascii") as file:
        return int(file.read() or 0)
    return 0


def _write_bundle() -> None:
    for name in ("rootfs", "count"):
        os.mkdir(f"{_DIR}/{name}")
    binds = [path for path in _BINDS if os.path.isdir(path) and not os.path.islink(path)]
    for path in _BINDS:
        if os.path.islink(path):
            os.symlink(os.readlink(path), f"{_DIR}/rootfs{path}")
    spec = {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/sh", "-c", _COUNT],
            "env": ["PATH=/usr/bin:/bin"],
            "cwd": "/",
        },
        "root": {"path": "rootfs", "readonly": False},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            *(_bind(path, path, "ro") for path in binds),
            _bind(f"{_DIR}/count", "/count", "rw"),
        ],
        "linux": {
            "cgroupsPath": f"/{_ID}",
            "namespaces": [{"type": name} for name in ("pid", "ipc", "uts", "mount")],
        },
    }
    with open(f"{_DIR}/config.json", "w", encoding="utf-8") as file:
        json.dump(spec, file)


def _bind(source: str, destination: str, mode: str) -> dict[str, object]:
    return {
        "destination": destination,
        "type": "bind",
        "source": source,
        "options": ["rbind", "rprivate", mode],
    }
