"""The directories beside a checkpoint's place in which pulls put it together.

Who brings a checkpoint holds a lock on its directory. One without a lock was left by a pull that
failed, was cancelled or killed: the next pull of that very checkpoint goes on with it.
"""

from __future__ import annotations

import fcntl
import glob
import os
import re
import time
from contextlib import contextmanager, suppress

from grit_runtime import log
from grit_runtime.errors import ImageError
from grit_runtime.files import arrivals, confine
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME = re.compile(r"\.(.+)\.[0-9a-f]{16}\.pull")
_BLOCK_BYTES = 512
_KEPT_S = 86400.0


class Left(NamedTuple):
    """What a pull has left."""

    namespace: str
    name: str  # of the checkpoint
    directory: str
    size_bytes: int  # on the disk
    used_s: float  # since the epoch


@contextmanager
def locked(parent_fd: int, name: str, sha256: str) -> Iterator[tuple[int, str]]:
    """Fd and name of the directory for the checkpoint *name* with that manifest, made if missing.

    Waits for another pull of the same checkpoint.
    """
    directory = f".{name}.{sha256[:16]}.pull"
    while True:
        with suppress(FileExistsError):
            os.mkdir(directory, mode=0o700, dir_fd=parent_fd)
        with closing_fd(confine.descend(parent_fd, [directory])) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _is_still(parent_fd, directory, fd):
                yield fd, directory
                return


def left(root: str) -> list[Left]:
    """What is below the checkpoint root and nobody brings now, the least recently used first."""
    found = []
    for path in glob.glob(f"{glob.escape(root)}/*/.*.pull"):
        *_, namespace, directory = path.split("/")
        named = _NAME.fullmatch(directory)
        # A job that waits for its peer goes on with it.
        if not named or arrivals.is_alive(namespace, named[1]):
            continue
        with (
            suppress(FileNotFoundError, ImageError),  # it has just gone, or is no directory
            closing_fd(confine.open_dir(root, namespace, directory)) as fd,
        ):
            if _lock(fd):
                stats = [os.fstat(fd), *(entry.stat for entry in confine.walk(fd, changing=True))]
                size_bytes = sum(stat.st_blocks for stat in stats) * _BLOCK_BYTES
                used_s = max(stat.st_mtime for stat in stats)
                found.append(Left(namespace, named[1], directory, size_bytes, used_s))
    return sorted(found, key=lambda one: one.used_s)


def remove(root: str, one: Left) -> bool:
    """Remove what a pull has left; false if another one has gone on with it, or removed it."""
    with (
        closing_fd(confine.open_dir(root, one.namespace)) as parent_fd,
        suppress(FileNotFoundError),
        closing_fd(confine.descend(parent_fd, [one.directory])) as fd,
    ):
        if _lock(fd) and _is_still(parent_fd, one.directory, fd):
            confine.remove_tree(parent_fd, one.directory)
            log.info("what a pull has left is removed", name=one.name, size_bytes=one.size_bytes)
            return True
    return False


def remove_old(root: str) -> None:
    """Remove what nobody has gone on with for a day."""
    for one in left(root):
        if time.time() - one.used_s > _KEPT_S:
            remove(root, one)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_still(parent_fd: int, name: str, fd: int) -> bool:
    """Whether *name* still leads to the directory *fd*, now that nobody else has its lock."""
    try:
        status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(status, os.fstat(fd))
