"""Waiting until something changes in a directory. Spec: inotify(7)."""

from __future__ import annotations

import os
import select

from grit_runtime.host import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

_IN_CLOSE_WRITE, _IN_MOVED_FROM, _IN_MOVED_TO = 0x8, 0x40, 0x80
_IN_CREATE, _IN_DELETE, _IN_ONLYDIR = 0x100, 0x200, 0x1000000
_CHANGES = _IN_CLOSE_WRITE | _IN_MOVED_FROM | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE

_POLL_S = 0.2
_BUFFER_BYTES = 64 << 10


class Changes:
    """Directories that are watched until the block ends.

    Where the kernel cannot tell of all changes, or has no watch left, each wait is a fifth of a
    second at most, and the caller looks.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._is_told = True

    def __enter__(self) -> Self:
        try:
            self._fd = linux.result("inotify_init1", "inotify", os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # no instance is left: fs.inotify.max_user_instances
            self._is_told = False
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def watch(self, directory: str) -> None:
        """Watch what is made, renamed, removed or written right in *directory*; twice is once."""
        if self._fd < 0:
            return
        path = os.fsencode(directory)
        try:
            if linux.is_shared(directory):
                self._is_told = False
            linux.result("inotify_add_watch", directory, self._fd, path, _CHANGES | _IN_ONLYDIR)
        except OSError:  # no watch is left, or the directory has gone
            self._is_told = False

    def wait(self, timeout_s: float, others: Iterable[int] = ()) -> list[int]:
        """Block until something may have changed; which of the *others* are readable."""
        poll = select.poll()
        for fd in (self._fd, *others):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        ready = poll.poll(1000 * (timeout_s if self._is_told else min(timeout_s, _POLL_S)))
        readable = [fd for fd, _ in ready]
        if self._fd in readable:
            readable.remove(self._fd)
            os.read(self._fd, _BUFFER_BYTES)
        return readable
