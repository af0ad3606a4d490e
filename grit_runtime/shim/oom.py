"""Hears from the kernel when a container has run out of memory.

Spec: linux Documentation/admin-guide/cgroup-v1/memory.rst section 10, cgroup-v2.rst
(memory.events, which poll(2) reports as POLLPRI when it changes).
"""

from __future__ import annotations

import asyncio
import os
import select

from grit_runtime.host import cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class OomWatch:
    """Calls *happened* whenever the kernel kills in the cgroup for want of memory, until closed."""

    def __init__(self, cgroup_path: str, happened: Callable[[], None]) -> None:
        self._happened = happened
        self._fds: list[int] = []
        self._killed = 0
        for directory in cgroup.directories(cgroup_path):
            if os.path.exists(f"{directory}/memory.events"):
                self._watch_v2(f"{directory}/memory.events")
            elif os.path.exists(f"{directory}/memory.oom_control"):
                self._watch_v1(directory)

    def close(self) -> None:
        for fd in self._fds:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
        self._fds.clear()

    def _watch_v1(self, directory: str) -> None:
        event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        control_fd = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        with open(f"{directory}/cgroup.event_control", "w", encoding="ascii") as file:
            file.write(f"{event_fd} {control_fd}")
        self._fds += [event_fd, control_fd]

        def notified() -> None:
            os.eventfd_read(event_fd)
            if os.path.exists(directory):  # its removal is notified too
                self._happened()

        asyncio.get_running_loop().add_reader(event_fd, notified)

    def _watch_v2(self, path: str) -> None:
        file_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        poll = select.epoll()
        poll.register(file_fd, select.EPOLLPRI)
        poll_fd = os.dup(poll.fileno())
        poll.close()
        self._fds += [poll_fd, file_fd]
        self._killed = _kills(file_fd)

        def notified() -> None:
            killed = _kills(file_fd)
            if killed > self._killed:
                self._killed = killed
                self._happened()

        asyncio.get_running_loop().add_reader(poll_fd, notified)


def _kills(fd: int) -> int:
    """How often memory.events says that the kernel has killed; none once the cgroup is gone."""
    try:
        lines = os.pread(fd, 4096, 0).decode("ascii").splitlines()
    except OSError:
        return 0
    return int(dict(line.split(" ") for line in lines).get("oom_kill", 0))
