"""What processes watch with inotify and fanotify: inodes, and the names that lead to them.

The kernel gives CRIU a handle of each watched inode. A handle in an overlay, a container's root,
opens nothing, so there CRIU must be told the name. Of other filesystems it finds it by itself.

Spec: proc_pid_fdinfo(5); checkpoint-restore/criu criu/fsnotify.c check_open_handle, criu/irmap.c.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress

from grit_runtime.host import confine
from grit_runtime.host.process import open_links, proc_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Set

_GROUPS = ("anon_inode:inotify", "anon_inode:[fanotify]")
_WATCH = re.compile(r"^(?:inotify wd:\S+|fanotify) ino:(\S+) sdev:(\S+)", re.MULTILINE)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MINOR_BITS = 20  # of a device's number inside the kernel


def on_root(pids: Iterable[int]) -> dict[int, set[int]]:
    """The inodes of their own root filesystem that processes watch, less the root itself."""
    found = {}
    for pid in pids:
        fds = [fd for fd, link in open_links(pid).items() if link in _GROUPS]
        if not fds:
            continue
        with suppress(FileNotFoundError):  # it has ended
            root = os.stat(f"/proc/{pid}/root")
            device = os.major(root.st_dev) << _MINOR_BITS | os.minor(root.st_dev)
            watches = (m for fd in fds for m in _WATCH.findall(proc_text(pid, f"fdinfo/{fd}")))
            inodes = {int(inode, 16) for inode, sdev in watches if int(sdev, 16) == device}
            if inodes - {root.st_ino}:
                found[pid] = inodes - {root.st_ino}
    return found


def names(root: str, inodes: Set[int]) -> dict[int, str]:
    """Absolute paths, in the filesystem of the directory *root*, of those of *inodes* it has."""
    found: dict[int, str] = {}
    if inodes:
        root_fd = os.open(root, _DIRECTORY)
        try:
            _search(root_fd, "", set(inodes), found, confine.MAX_DEPTH)
        finally:
            os.close(root_fd)
    return found


def _search(dir_fd: int, prefix: str, left: set[int], found: dict[int, str], depth: int) -> None:
    """Look in a directory and what is below it, on the same filesystem, until none is *left*.

    The container runs meanwhile, so what has just been there may be gone.
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
                    try:
                        if os.fstat(child_fd).st_dev == device:
                            _search(child_fd, path, left, found, depth - 1)
                    finally:
                        os.close(child_fd)
