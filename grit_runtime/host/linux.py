"""System calls that os lacks on Python 3.11. Each raises OSError with the call's name and path."""

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_SYNC_FILE_RANGE_WRITE = 2

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent_pid: int) -> None:
    """In a child: get SIGKILL when the parent's thread that forked it ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before prctl
        os._exit(1)


def adopt_orphans(*, wanted: bool) -> None:
    """Let orphans below this process become its children, or their next ancestor's."""
    call("prctl", "PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0)


def set_name(name: str) -> None:
    """What this process is called in /proc/PID/comm; at most 15 bytes."""
    call("prctl", "PR_SET_NAME", _PR_SET_NAME, name.encode(), 0, 0, 0)


def setns(path: str) -> None:
    """Move this thread into the namespace at *path*."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        call("setns", path, fd, 0)
    finally:
        os.close(fd)


def sync_filesystem(directory: str) -> None:
    """Write the filesystem of *directory* to its medium. Blocks for as long as that takes."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        call("syncfs", directory, fd)
    finally:
        os.close(fd)


def start_writing(fd: int, offset: int, size_bytes: int) -> None:
    """Have a part of a file written to its medium; does not wait until it is."""
    arguments = (fd, ctypes.c_int64(offset), ctypes.c_int64(size_bytes), _SYNC_FILE_RANGE_WRITE)
    call("sync_file_range", f"fd {fd}", *arguments)


def exchange(one: str, other: str) -> None:
    """Swap two paths of one filesystem in one step."""
    paths = (_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other))
    call("renameat2", other, *paths, _RENAME_EXCHANGE)


def call(name: str, path: str, *arguments: object) -> None:
    """Call libc's *name*; OSError with that name, about *path*, if it does not return 0."""
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}", path)
