"""Enabling transparent huge pages on the node while device memory is moved.

The driver stages a process's device memory in one anonymous mapping, and CRIU fills it again; with
4 KiB pages both are bound by page faults. The setting is the node's, so the first user saves the
old value in a file, and the last restores it. All users lock that file, so if one is killed, the
next to leave restores the value. Source: linux
Documentation/admin-guide/mm/transhuge.rst.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress

from grit_runtime import paths
from grit_runtime.host.descriptor import closing_fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_ENABLED = "/sys/kernel/mm/transparent_hugepage/enabled"
_KEPT = f"{paths.RUN_DIR}/huge-pages"


@contextmanager
def enabled(*, wanted: bool) -> Iterator[None]:
    """Set huge pages to "always" during the block, if *wanted* and the kernel has them."""
    if not (wanted and os.path.exists(_ENABLED)):
        yield
        return
    fd = _join()
    try:
        yield
    finally:
        _leave(fd)


def recover() -> None:
    """Restore the setting if all its users have died."""
    if os.path.exists(_KEPT):
        _leave(os.open(_KEPT, os.O_RDWR | os.O_CLOEXEC))


def _join() -> int:
    os.makedirs(os.path.dirname(_KEPT), mode=0o700, exist_ok=True)
    while True:
        fd = os.open(_KEPT, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with suppress(BlockingIOError):  # others use them already
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_size == 0:
                os.write(fd, (chosen() or "").encode())
            _choose("always")
        fcntl.flock(fd, fcntl.LOCK_SH)
        if os.fstat(fd).st_nlink:  # else the last user has left in between
            return fd
        os.close(fd)


def _leave(fd: int) -> None:
    with closing_fd(fd), suppress(BlockingIOError):  # others still use them
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink:
            _choose(os.pread(fd, 64, 0).decode())
            os.unlink(_KEPT)


def chosen() -> str | None:
    """The node's setting, the word in brackets of ``always [madvise] never``; None without them."""
    try:
        with open(_ENABLED, encoding="ascii") as file:
            return file.read().partition("[")[2].partition("]")[0]
    except FileNotFoundError:
        return None


def _choose(word: str) -> None:
    with open(_ENABLED, "w", encoding="ascii") as file:
        file.write(word)
