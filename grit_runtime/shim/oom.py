"""Hears from the kernel when a container has run out of memory.

Spec: linux Documentation/admin-guide/cgroup-v1/memory.rst section 10, cgroup-v2.rst
(memory.events, which poll(2) reports as POLLPRI when it changes).
"""

from __future__ import annotations

import asyncio
import os
import select
from contextlib import suppress

from grit_runtime.host import cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class OomWatch:
    """Calls *happened* when the kernel kills in a watched cgroup for want of memory."""

    def __init__(self, happened: Callable[[], None]) -> None:
        self._happened = happened
        self._fds: list[int] = []  # all that is open
        self._watched: dict[int, Callable[[], None]] = {}

    def watch(self, cgroup_path: str) -> None:
        """Watch until close(); OSError if the cgroup goes meanwhile."""
        for directory in cgroup.directories(cgroup_path):
            if os.path.exists(f"{directory}/memory.events"):
                self._watch_v2(f"{directory}/memory.events")
            elif os.path.exists(f"{directory}/memory.oom_control"):
                self._watch_v1(directory)

    def close(self) -> None:
        """Watch no more. What the kernel has told by now is passed on before."""
        for fd, look in self._watched.items():
            asyncio.get_running_loop().remove_reader(fd)
            look()
        for fd in self._fds:
            os.close(fd)
        self._watched.clear()
        self._fds.clear()

    def _open(self, path: str) -> int:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._fds.append(fd)
        return fd

    def _look_when_readable(self, fd: int, look: Callable[[], None]) -> None:
        self._watched[fd] = look
        asyncio.get_running_loop().add_reader(fd, look)

    def _watch_v1(self, directory: str) -> None:
        control_fd = self._open(f"{directory}/memory.oom_control")
        event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._fds.append(event_fd)
        with open(f"{directory}/cgroup.event_control", "w", encoding="ascii") as file:
            file.write(f"{event_fd} {control_fd}")

        def look() -> None:
            with suppress(BlockingIOError):  # there has been none
                os.eventfd_read(event_fd)
                if os.path.exists(directory):  # its removal is notified too
                    self._happened()

        self._look_when_readable(event_fd, look)

    def _watch_v2(self, path: str) -> None:
        file_fd = self._open(path)
        with select.epoll() as poll:
            poll.register(file_fd, select.EPOLLPRI)
            poll_fd = os.dup(poll.fileno())
        self._fds.append(poll_fd)
        killed = _kills(file_fd)

        def look() -> None:
            nonlocal killed
            if (now := _kills(file_fd)) > killed:
                killed = now
                self._happened()

        self._look_when_readable(poll_fd, look)


def _kills(fd: int) -> int:
    """How often memory.events says that the kernel has killed; none once the cgroup is gone."""
    try:
        lines = os.pread(fd, 4096, 0).decode("ascii").splitlines()
    except OSError:
        return 0
    return int(dict(line.split(" ") for line in lines).get("oom_kill", 0))
