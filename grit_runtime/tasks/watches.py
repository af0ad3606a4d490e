"""The inodes that processes watch with inotify and fanotify, and the names that lead to them.

The kernel gives CRIU a handle of each watched inode. In an overlay, such as a container's root, a
handle cannot be opened, so CRIU needs the name; for other filesystems it finds the name itself.

Spec: proc_pid_fdinfo(5); checkpoint-restore/criu criu/fsnotify.c check_open_handle, criu/irmap.c.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress

from grit_runtime.files import confine
from grit_runtime.host import linux, procfs
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.host.procfs import open_links

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Set

_GROUPS = ("anon_inode:inotify", "anon_inode:[fanotify]")
_WATCH = re.compile(r"^(?:inotify wd:\S+|fanotify) ino:(\S+) sdev:(\S+)", re.MULTILINE)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MINOR_BITS = 20  # of a device's number inside the kernel


def on_root(pids: Iterable[int]) -> dict[int, set[int]]:
    """The inodes of their root filesystem that processes watch, except the root itself, by pid."""
    watched = {}
    for pid in pids:
        fds = [fd for fd, link in open_links(pid).items() if link in _GROUPS]
        if not fds:
            continue
        with suppress(FileNotFoundError):  # the process has ended
            root = os.stat(f"/proc/{pid}/root")
            device = os.major(root.st_dev) << _MINOR_BITS | os.minor(root.st_dev)
            watches = (m for fd in fds for m in _WATCH.findall(procfs.text(pid, f"fdinfo/{fd}")))
            inodes = {int(inode, 16) for inode, sdev in watches if int(sdev, 16) == device}
            if inodes - {root.st_ino}:
                watched[pid] = inodes - {root.st_ino}
    return watched


def unread_bytes(pid: int) -> int:
    """The size of the events that a process has not read yet; 0 if it has gone."""
    size_bytes = 0
    for fd in (fd for fd, link in open_links(pid).items() if link in _GROUPS):
        with suppress(FileNotFoundError, ProcessLookupError):
            size_bytes += linux.unread_bytes(pid, fd)
    return size_bytes


def names(root: str, inodes: Set[int]) -> dict[int, str]:
    """Absolute paths of those *inodes* that the filesystem of the directory *root* has."""
    found: dict[int, str] = {}
    if inodes:
        with closing_fd(os.open(root, _DIRECTORY)) as root_fd:
            _search(root_fd, "", set(inodes), found, confine.MAX_DEPTH)
    return found


def _search(dir_fd: int, prefix: str, left: set[int], found: dict[int, str], depth: int) -> None:
    """Search a directory and those below it, on the same filesystem, until no inode is *left*.

    The container runs meanwhile, so entries may disappear.
    """
    device = os.fstat(dir_fd).st_dev
    with os.scandir(dir_fd) as entries:
        for entry in entries:
            if not left:
                break
            path = f"{prefix}/{entry.name}"
            with suppress(OSError):
                if entry.inode() in left and entry.stat(follow_symlinks=False).st_dev == device:
                    left.discard(entry.inode())
                    found[entry.inode()] = path
                if depth and entry.is_dir(follow_symlinks=False):
                    child_fd = os.open(entry.name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
                    with closing_fd(child_fd):
                        if os.fstat(child_fd).st_dev == device:
                            _search(child_fd, path, left, found, depth - 1)
