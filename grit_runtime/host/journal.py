"""Journals: files that record what an operation has begun to change, so that others can undo it.

A journal is a file of JSON lines. Its writer holds an exclusive flock on it for as long as it
lives, so an unlocked journal is a dead writer's. A step is recorded before it is taken: undoing a
step that never happened must be harmless.
"""

import errno
import fcntl
import glob
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Generic

from grit_runtime import paths
from grit_runtime.errors import FailedPreconditionError
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import steps
from grit_runtime.model.steps import Step, Steps

# Has a directory for each pod, named by its sandbox's id: with the journal of a checkpoint, and a
# directory for each container that is being or was restored. Emptied by a reboot.
PODS_DIR = f"{paths.RUN_DIR}/pods"
CHECKPOINT = "checkpoint.journal"
DUMP = "dump"  # what CRIU writes besides the images


class Journal(Generic[Step]):
    """An open, locked journal. Made by `begin` (new) or `adopt` (a dead writer's)."""

    def __init__(self, path: str, kinds: Steps[Step], fd: int) -> None:
        self.path = path
        self._kinds = kinds
        self._fd = fd

    def record(self, step: Step) -> None:
        """Append one step, durable against the death of this process (not of the machine)."""
        line = json.dumps(steps.written(step)).encode() + b"\n"
        if os.write(self._fd, line) < len(line):
            _cut_torn(self._fd)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)

    def steps(self) -> list[Step]:
        """As `read`."""
        return read(self.path, self._kinds)

    def end(self) -> None:
        """Remove the journal: nothing is left to undo."""
        os.unlink(self.path)
        self.close()

    def close(self) -> None:
        """Unlock the journal and leave it for `adopt`."""
        os.close(self._fd)


def dirs_of(container_id: str) -> list[str]:
    """The existing directories of this container, or of its pod if it is a sandbox."""
    paths = [*beneath(PODS_DIR, f"*/{glob.escape(container_id)}"), f"{PODS_DIR}/{container_id}"]
    return [path for path in paths if os.path.isdir(path)]


def checkpoints() -> list[str]:
    """The journals of checkpoints."""
    return beneath(PODS_DIR, f"*/{CHECKPOINT}")


def checkpoints_with(container_id: str) -> list[str]:
    """The journals of checkpoints that contain this container's id."""
    journals = []
    for path in checkpoints():
        with suppress(FileNotFoundError), open(path, "rb") as file:
            if container_id.encode() in file.read():
                journals.append(path)
    return journals


def begin(path: str, kinds: Steps[Step]) -> Journal[Step]:
    """A new journal at *path*, of steps of these kinds.

    FailedPreconditionError if one is there, whether its writer lives or not: the caller adopts and
    undoes a dead one first.
    """
    directory = os.path.dirname(path)
    while True:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        fd = -1
        try:
            # Locked before it has a name: whoever finds it unlocked takes its writer for dead.
            fd = os.open(directory, os.O_RDWR | os.O_APPEND | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX)
            # Given a descriptor, os.link follows links, as it is said to.
            os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
        except FileNotFoundError:  # another has just removed the directory, which was empty
            if fd >= 0:
                os.close(fd)
        except FileExistsError:
            os.close(fd)
            raise FailedPreconditionError(
                f"journal {path} exists: another operation holds it"
            ) from None
        else:
            return Journal(path, kinds, fd)


def read(path: str, kinds: Steps[Step]) -> list[Step]:
    """The steps of a journal that may be another's, oldest first.

    A torn last line was never acted upon and is left out. FailedPreconditionError for a step that
    this version does not know, and so could not undo.
    """
    with open(path, "rb") as file:
        lines = [json.loads(line) for line in file if line.endswith(b"\n")]
    try:
        return [kinds.read(line) for line in lines]
    except FailedPreconditionError as error:
        raise FailedPreconditionError(f"journal {path}: {error}") from None


@contextmanager
def locked(pod_dir: str) -> Iterator[None]:
    """Hold what is decided about a pod, whose directory exists. Blocks while another holds it."""
    with closing_fd(os.open(pod_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield


def hold(path: str, kinds: Steps[Step]) -> Journal[Step]:
    """Open the journal at *path*, made if there is none. Blocks while another has it locked."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    while True:
        fd = os.open(path, flags, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            _cut_torn(fd)
            return Journal(path, kinds, fd)
        os.close(fd)  # its owner ended it meanwhile


def beneath(directory: str, pattern: str) -> list[str]:
    """The paths beneath *directory* that fit the glob *pattern*."""
    return sorted(glob.glob(f"{glob.escape(directory)}/{pattern}"))


def adopt(path: str, kinds: Steps[Step], *, wait: bool = False) -> Journal[Step] | None:
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
    _cut_torn(fd)
    return Journal(path, kinds, fd)


def _cut_torn(fd: int) -> None:
    """Cut a torn last line off, or the next step would be a part of it."""
    data = os.pread(fd, os.fstat(fd).st_size, 0)
    if (end := data.rfind(b"\n") + 1) < len(data):
        os.ftruncate(fd, end)
