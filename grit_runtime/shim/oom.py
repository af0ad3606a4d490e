"""Watches for kills by the OOM killer in a container's cgroup.

Spec: linux Documentation/admin-guide/cgroup-v1/memory.rst section 10, cgroup-v2.rst
(memory.events, which poll(2) reports as POLLPRI when it changes).
"""

from __future__ import annotations

import asyncio
import os
import select
from contextlib import ExitStack, suppress

from grit_runtime.host import cgroup
from grit_runtime.shim.threads import in_thread
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class _Watched(NamedTuple):
    """The descriptor to poll, all that is open for it, and the check whether the kernel killed."""

    fd: int
    opened: ExitStack
    look: Callable[[], bool]


class OomWatch:
    """Calls *happened* when the OOM killer kills in a watched cgroup."""

    def __init__(self, happened: Callable[[], None]) -> None:
        self._happened = happened
        self._watched: list[_Watched] = []
        self._is_closed = False

    async def watch(self, cgroup_path: str) -> None:
        """Watch until close(); OSError if the cgroup goes meanwhile."""
        self._watched = await in_thread(_watched, cgroup_path)
        if self._is_closed:
            self.close()
        else:
            for watched in self._watched:
                asyncio.get_running_loop().add_reader(watched.fd, self._look, watched)

    def close(self) -> None:
        """Stop watching, after kills up to now have been passed on."""
        self._is_closed = True
        for watched in self._watched:
            asyncio.get_running_loop().remove_reader(watched.fd)
            self._look(watched)
            watched.opened.close()
        self._watched = []

    def _look(self, watched: _Watched) -> None:
        if watched.look():
            self._happened()


def _watched(cgroup_path: str) -> list[_Watched]:
    """Register with the kernel. Blocks while it is busy with its cgroups."""
    found = []
    with ExitStack() as on_failure:
        for directory in cgroup.directories(cgroup_path):
            if os.path.exists(f"{directory}/memory.events"):
                found.append(_watched_v2(f"{directory}/memory.events"))
            elif os.path.exists(f"{directory}/memory.oom_control"):
                found.append(_watched_v1(directory))
            else:
                continue
            on_failure.callback(found[-1].opened.close)
        on_failure.pop_all()
    return found


def _watched_v1(directory: str) -> _Watched:
    with ExitStack() as opened:
        control_fd = _open(f"{directory}/memory.oom_control", opened)
        event_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        opened.callback(os.close, event_fd)
        with open(f"{directory}/cgroup.event_control", "w", encoding="ascii") as file:
            file.write(f"{event_fd} {control_fd}")

        def look() -> bool:
            with suppress(BlockingIOError):  # there was no event
                os.eventfd_read(event_fd)
                return os.path.exists(directory)  # its removal is notified too
            return False

        return _Watched(event_fd, opened.pop_all(), look)


def _watched_v2(path: str) -> _Watched:
    with ExitStack() as opened:
        file_fd = _open(path, opened)
        with select.epoll() as poll:
            poll.register(file_fd, select.EPOLLPRI)
            poll_fd = os.dup(poll.fileno())
        opened.callback(os.close, poll_fd)
        killed = _kills(file_fd)

        def look() -> bool:
            nonlocal killed
            before, killed = killed, max(killed, _kills(file_fd))
            return killed > before

        return _Watched(poll_fd, opened.pop_all(), look)


def _open(path: str, opened: ExitStack) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    opened.callback(os.close, fd)
    return fd


def _kills(fd: int) -> int:
    """The count of OOM kills in memory.events; 0 once the cgroup is gone."""
    try:
        lines = os.pread(fd, 4096, 0).decode("ascii").splitlines()
    except OSError:
        return 0
    return int(dict(line.split(" ") for line in lines).get("oom_kill", 0))
