"""System calls that os lacks on Python 3.11. Each raises OSError with the call's name and path."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent_pid: int) -> None:
    """In a child: get SIGKILL when the parent's thread that forked it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before prctl
        os._exit(1)


def setns(path: str) -> None:
    """Move this thread into the namespace at *path*."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.setns(fd, 0), "setns", path)
    finally:
        os.close(fd)


def sync_filesystem(directory: str) -> None:
    """Write the filesystem of *directory* to its medium. Blocks for as long as that takes."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check(_libc.syncfs(fd), "syncfs", directory)
    finally:
        os.close(fd)


def exchange(one: str, other: str) -> None:
    """Swap two paths of one filesystem in one step."""
    paths = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    _check(_libc.renameat2(*paths, _RENAME_EXCHANGE), "renameat2", other)


def _check(result: int, call: str, path: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", path)
