"""The directories that grit writes to, by writing there. Nothing stays, also when it is killed."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time

from grit_runtime import errors, paths
from grit_runtime.doctor.finding import Finding, broken, ok, warning
from grit_runtime.errors import DeadlineExceededError
from grit_runtime.host import linux, process
from grit_runtime.model import sizes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.doctor.node import Node

ANSWERS_WITHIN_S = 2.0
_TRIED_BYTES = 32 << 20
_TRIED_S = 0.5  # no more is written after that: a slow disk is no dead one
_LEAST_BYTES = 1 << 30


def checkpoint_root(node: Node) -> Finding:
    """Write up to 32 MiB to its medium.

    By a child, since each call hangs if the server of a mount is dead.
    """
    root = node.config.checkpoint_root
    try:
        found = process.answered(lambda: _checkpoint_root(node), timeout_s=ANSWERS_WITHIN_S)
    except DeadlineExceededError as error:
        return broken(
            f"{root} does not answer within {ANSWERS_WITHIN_S:g} s",
            "see that its disk works, or the server that it is mounted from",
            error.reason,
        )
    return Finding(*found)


def _checkpoint_root(node: Node) -> Finding:
    root = node.config.checkpoint_root
    if not os.path.isdir(root):
        return broken(
            f"{root} is no directory",
            f"install -d -m 0700 {root}, or set checkpoint_root",
            errors.NotFoundError.reason,
        )
    try:
        bytes_per_s = _rate(root)
    except OSError as error:
        return _cannot_write(root, error)
    free_bytes = shutil.disk_usage(root).free
    where = f"{root}{', on a network' * linux.is_shared(root)}"
    evidence = (
        f"{where}: {sizes.shown(free_bytes)} free, {sizes.shown(bytes_per_s)}/s to the medium"
    )
    status = os.stat(root)
    if status.st_uid != 0 or stat.S_IMODE(status.st_mode) & 0o022:
        return warning(
            f"{evidence}; others than root can change it",
            f"chown root {root} && chmod 0700 {root}: each checkpoint is copied before its restore "
            "otherwise",
        )
    if free_bytes < max(_LEAST_BYTES, node.gpu_bytes):
        return warning(evidence, "make room: a checkpoint is as large as the memory of its pod")
    return ok(evidence)


def own_directories(_: Node) -> Finding:
    """Journals, records and logs: without them nothing is begun."""
    for directory in (paths.RUN_DIR, paths.STATE_DIR, paths.LOG_DIR):
        there = directory
        while not os.path.exists(there):
            there = os.path.dirname(there)
        try:
            with tempfile.TemporaryFile(dir=there) as file:
                file.write(b"\0" * 4096)
                file.flush()
        except OSError as error:
            return _cannot_write(directory, error)
    return ok(f"{paths.RUN_DIR}, {paths.STATE_DIR} and {paths.LOG_DIR} can be written")


def _rate(directory: str) -> float:
    block = os.urandom(1 << 20)
    took_s, written = 0.0, 0
    begin = time.monotonic()
    with tempfile.TemporaryFile(dir=directory) as file:
        while written < _TRIED_BYTES and took_s < _TRIED_S:
            for _ in range(max(1, written // len(block))):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            took_s, written = time.monotonic() - begin, file.tell()
    return written / took_s


def _cannot_write(directory: str, error: OSError) -> Finding:
    is_full = (
        shutil.disk_usage(directory).free < _TRIED_BYTES if os.path.exists(directory) else False
    )
    return broken(
        f"{directory}: {error.strerror}",
        "make room there" if is_full else "mount it writable, on a disk that works",
        errors.RoomError.reason if is_full else errors.SYSTEM_CALL,
    )
