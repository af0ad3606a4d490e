"""Records that a checkpoint on this node was verified, so that a restore need not read it again.

A record has the fingerprint of the directory as it was: the path, size, inode, device, times, mode
and owner of all that is in it. Whatever changes a file's content, name or mode sets its ctime to
the present, which no call can set back. So a record says nothing of three things, and `grit verify`
reads all the same: bits that flip on the disk; who sets the clock back, or writes to the disk
beneath the filesystem, which takes root; what was on no disk yet when the node lost its power.
The last is why the records lie where a reboot empties them. There are none of a network filesystem,
whose times are another machine's.
"""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress

from grit_runtime import paths
from grit_runtime.files import checkpoint_dir, confine
from grit_runtime.host import linux
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

DIR = f"{paths.RUN_DIR}/verified"

# Files get their times from it; it moves once in 1 to 10 ms. Linux include/uapi/linux/time.h.
_CLOCK_REALTIME_COARSE = 5
_TICK_S = 0.002


class Fingerprint(NamedTuple):
    """A checkpoint's directory as it is now."""

    digest: str
    newest_ns: int  # the latest ctime


def fingerprint(dir_fd: int) -> Fingerprint:
    """Of all that is in the directory; the directory's own name and times may change."""
    status = os.fstat(dir_fd)
    hashed = hashlib.sha256(f"{status.st_dev} {status.st_ino} {status.st_mode}\0".encode())
    newest_ns = 0
    for entry in confine.walk(dir_fd):
        if entry.path == checkpoint_dir.SENTINEL:  # written when all else is there, or never
            continue
        s = entry.stat
        facts = (s.st_size, s.st_ino, s.st_dev, s.st_mtime_ns, s.st_ctime_ns, s.st_mode)
        hashed.update(f"{(*facts, s.st_uid, s.st_gid)}".encode())
        hashed.update(os.fsencode(entry.path) + b"\0")
        newest_ns = max(newest_ns, s.st_ctime_ns)
    return Fingerprint(hashed.hexdigest(), newest_ns)


def record(checkpoint_root: str, namespace: str, name: str) -> None:
    """Record that the checkpoint is as its manifest says, which the caller has seen.

    Nothing is recorded if others than root can change it: a restore copies such a checkpoint.
    """
    names = (namespace, name)
    with closing_fd(confine.open_dir(checkpoint_root, *names)) as dir_fd:
        if checkpoint_dir.is_private(checkpoint_root, names, dir_fd):
            keep(dir_fd, "/".join((checkpoint_root, *names)), fingerprint(dir_fd))


def keep(dir_fd: int, path: str, before: Fingerprint) -> None:
    """As `record`, of a directory that has, or will be renamed to, the name *path*.

    *before* is from before it was verified. Nothing is recorded if it has changed since. Blocks
    for up to a tick of the clock: a change later in the tick of the last one would not be seen.
    """
    if confine.untrusted_entry(dir_fd) is not None or linux.is_shared(f"/proc/self/fd/{dir_fd}"):
        return
    if before.newest_ns > time.time_ns():
        return
    while time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) <= before.newest_ns:
        time.sleep(_TICK_S)
    if fingerprint(dir_fd) != before:
        return
    sha256 = checkpoint_dir.read_manifest(dir_fd, path).sha256
    os.makedirs(DIR, mode=0o700, exist_ok=True)
    _drop_gone(path)
    own = f"{DIR}/{sha256}"
    with open(os.open(f"{own}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(_line(before, path))
    os.replace(f"{own}.new", own)


def holds(dir_fd: int, path: str, sha256: str) -> bool:
    """Whether the directory, which is at *path*, is as it was when its manifest was recorded."""
    with suppress(FileNotFoundError), open(f"{DIR}/{sha256}", "rb") as file:
        return file.read() == _line(fingerprint(dir_fd), path)
    return False


def forget(sha256: str) -> None:
    """Drop the record of the checkpoint with this manifest, if there is one."""
    with suppress(FileNotFoundError):
        os.unlink(f"{DIR}/{sha256}")


def _drop_gone(replaced: str) -> None:
    """Drop the records of directories that are gone, and of what *replaced* was before."""
    for name, path in list(_records()):
        if path == os.fsencode(replaced) or not os.path.isdir(path):
            forget(name)


def _records() -> Iterator[tuple[str, bytes]]:
    for name in os.listdir(DIR):
        with suppress(FileNotFoundError), open(f"{DIR}/{name}", "rb") as file:
            yield name, file.read().partition(b" ")[2].rstrip(b"\n")


def _line(found: Fingerprint, path: str) -> bytes:
    return found.digest.encode() + b" " + os.fsencode(path) + b"\n"
