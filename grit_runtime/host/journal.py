"""Journals: what an operation has begun to change, kept so that somebody else can take it back.

A journal is a file of JSON lines. Its writer holds an exclusive flock on it for as long as it
lives, so an unlocked journal is a dead writer's. A step is recorded before it is taken: undoing a
step that never happened must be harmless.
"""

import fcntl
import glob
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from grit_runtime.errors import FailedPreconditionError

# What grit holds for a pod lies under the id of its sandbox: the journal of a checkpoint, a
# directory for each container that is being or was restored. Emptied by a reboot.
PODS_DIR = "/run/grit/pods"


class Journal:
    """An open, locked journal. Made by `begin` (new) or `adopt` (a dead writer's)."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    def record(self, step: str, **fields: object) -> None:
        """Append one step, durable against the death of this process (not of the machine)."""
        os.write(self._fd, json.dumps({"step": step, **fields}).encode() + b"\n")

    def steps(self) -> list[dict[str, Any]]:
        """All steps so far, oldest first; a torn last line was never acted upon and is left out."""
        return read(self.path)

    def end(self) -> None:
        """Remove the journal: nothing is left to undo."""
        os.unlink(self.path)
        self.close()

    def close(self) -> None:
        """Let go of the journal and leave it for `adopt`."""
        os.close(self._fd)


def begin(path: str) -> Journal:
    """A new journal at *path*.

    FailedPreconditionError if one is there, whether its writer lives or not: the caller adopts and
    undoes a dead one first.
    """
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except FileExistsError:
        raise FailedPreconditionError(
            f"journal {path} exists: another operation holds it"
        ) from None
    fcntl.flock(fd, fcntl.LOCK_EX)
    return Journal(path, fd)


def read(path: str) -> list[dict[str, Any]]:
    """The steps of a journal that may be another's; a torn last line is left out."""
    with open(path, "rb") as file:
        return [json.loads(line) for line in file if line.endswith(b"\n")]


@contextmanager
def locked(pod_dir: str) -> Iterator[None]:
    """Hold what is decided about a pod, whose directory exists. Blocks while another holds it."""
    fd = os.open(pod_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def hold(path: str) -> Journal:
    """The journal at *path*, made if there is none. Blocks while another holds it."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        fd = os.open(path, flags, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return Journal(path, fd)
        os.close(fd)  # it was ended while we waited


def beneath(directory: str, pattern: str) -> list[str]:
    """The paths beneath *directory* that fit the glob *pattern*."""
    return sorted(glob.glob(f"{glob.escape(directory)}/{pattern}"))


def adopt(path: str, *, wait: bool = False) -> Journal | None:
    """The journal at *path* if its writer is dead; None if there is none, or its writer lives.

    With *wait*, blocks until the writer ends.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(fd)
        return None
    if os.fstat(fd).st_nlink == 0:  # the writer ended it while we waited
        os.close(fd)
        return None
    return Journal(path, fd)
