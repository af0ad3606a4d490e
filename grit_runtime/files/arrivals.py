"""Announcements of checkpoints that are on their way to this node.

An announcement is a directory /run/grit/arrivals/<namespace>/<name> with one file, which is
replaced whole. Its writer holds a flock on the directory for as long as it lives, so an unlocked
one is a dead writer's. Whoever takes or tries such a lock holds that of all announcements
meanwhile: a try is never in a writer's way.
"""

from __future__ import annotations

import fcntl
import glob
import os
import time
from contextlib import contextmanager, suppress

from grit_runtime import log, paths
from grit_runtime.errors import (
    AlreadyExistsError,
    CancelledError,
    FailedPreconditionError,
    one_line,
    printable,
)
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import arrival as model
from grit_runtime.model.arrival import Arrival

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

DIR = f"{paths.RUN_DIR}/arrivals"

_FILE = "announcement.json"
_LIMIT_BYTES = 64 << 10
_TELL_EVERY_S = 0.5
_KEPT_S = 24 * 60 * 60


class Announcement:
    """An announcement of this process's. Made by `announced`."""

    def __init__(self, own_dir: str, arrival: Arrival) -> None:
        self._dir = own_dir
        self._arrival = arrival
        self._next_s = 0.0
        self._write()

    def tell(self, arrived_bytes: int) -> None:
        """Say how much has arrived; what is told within half a second of the last is lost."""
        self._arrival = self._arrival._replace(arrived_bytes=arrived_bytes)
        if time.monotonic() >= self._next_s:
            self._write()
            self._next_s = time.monotonic() + _TELL_EVERY_S

    def is_ready(self, directory: str) -> None:
        """Say that *directory*, beside the place, has all of it but memory that grit moves."""
        self._arrival = self._arrival._replace(ready=directory)
        self._write()

    def is_whole(self) -> None:
        """Say that the memory is there too."""
        self._arrival = self._arrival._replace(is_whole=True)
        self._write()

    def fail(self, reason: str) -> None:
        """Say that nothing more will come."""
        self._arrival = self._arrival._replace(failed=reason)
        self._write()

    def _write(self) -> None:
        path = f"{self._dir}/{_FILE}"
        with open(os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as f:
            f.write(model.dump(self._arrival))
        os.replace(f"{path}.new", path)


@contextmanager
def announced(
    checkpoint_root: str,
    namespace: str,
    name: str,
    manifest_sha256: str,
    size_bytes: int,
    source: str,
) -> Iterator[Announcement]:
    """Announce the checkpoint <root>/<namespace>/<name> for as long as the block runs.

    The block publishes it, sealed, by a rename, before it ends. A restore that the block keeps
    waiting takes nothing but the manifest with this digest (hex; "" if there will be none). If the
    block fails, the announcement stays and says why, for a day or until the next one, unless that
    is a CancelledError; if this process is killed, it stays without its lock. AlreadyExistsError
    while another process announces the same.
    """
    checkpoint = f"{checkpoint_root}/{namespace}/{name}"
    own_dir = directory(namespace, name)
    for parent in (DIR, f"{DIR}/{namespace}"):
        os.makedirs(parent, mode=0o700, exist_ok=True)
    with _locked():
        _drop_old()
        os.makedirs(own_dir, mode=0o700, exist_ok=True)
        lock_fd = _open(own_dir)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock_fd)
            raise AlreadyExistsError(
                f"checkpoint {checkpoint} is on its way to this node already; wait for it"
            ) from None
    with closing_fd(lock_fd):
        arrival = Arrival(
            *(checkpoint, manifest_sha256, printable(source), size_bytes),
            arrived_bytes=0,
            begun=log.rfc3339(),
            ready="",
            is_whole=False,
            failed="",
        )
        told = Announcement(own_dir, arrival)
        try:
            yield told
        except CancelledError:
            _withdraw(own_dir)
            raise
        except Exception as error:
            told.fail(one_line(error) or type(error).__name__)
            raise
        _withdraw(own_dir)


def of(checkpoint_root: str, namespace: str, name: str) -> Arrival | None:
    """The announcement of a checkpoint; None if there is none, or it is of a day ago and dead.

    FailedPreconditionError for a file that is no announcement.
    """
    path = f"{directory(namespace, name)}/{_FILE}"
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            data, written_s = file.read(_LIMIT_BYTES), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return None
    try:
        arrival = model.parse(data)
    except FailedPreconditionError as error:
        raise FailedPreconditionError(f"announcement {path}: {error}; remove it") from None
    if arrival.checkpoint != f"{checkpoint_root}/{namespace}/{name}":
        return None
    if time.time() - written_s > _KEPT_S and not is_alive(namespace, name):
        return None
    return arrival


def is_alive(namespace: str, name: str) -> bool:
    """Whether the process that announced the checkpoint still brings it."""
    with suppress(FileNotFoundError), _locked():
        return _is_locked(directory(namespace, name))
    return False


def directory(namespace: str, name: str) -> str:
    """Where an announcement is, if there is one."""
    return f"{DIR}/{namespace}/{name}"


@contextmanager
def _locked() -> Iterator[None]:
    with closing_fd(_open(DIR)) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield


def _is_locked(own_dir: str) -> bool:
    with closing_fd(_open(own_dir)) as fd:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _open(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _withdraw(own_dir: str) -> None:
    with _locked():
        _remove(own_dir)


def _drop_old() -> None:
    for own_dir in glob.glob(f"{glob.escape(DIR)}/*/*"):
        # What is told is renamed, which changes the directory.
        is_old = time.time() - os.stat(own_dir).st_mtime > _KEPT_S
        if is_old and not _is_locked(own_dir):
            _remove(own_dir)


def _remove(own_dir: str) -> None:
    for name in os.listdir(own_dir):
        os.unlink(f"{own_dir}/{name}")
    os.rmdir(own_dir)
