"""Unix sockets whose files were renamed or linked after they were bound.

supervisord, haproxy and a JVM's attach listener bind a socket under a temporary name, and then
rename or link its file. CRIU knows only the first name: it binds the socket there again, and grit
gives the file its other names while the tasks are still stopped.

Source: linux net/unix/af_unix.c unix_open_file; checkpoint-restore/criu criu/sk-unix.c
unix_resolve_name_old, bind_unix_sk@2cf8f13.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from contextlib import suppress

from grit_runtime.host import linux, namespaces
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model.task_facts import RenamedSocket
from grit_runtime.startup.named import NamedTuple
from grit_runtime.tasks import socket_facts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_SIOCUNIXFILE = 0x89E0  # include/uapi/linux/un.h


class Found(NamedTuple):
    """A renamed socket; *is_taken* means that its first name is another file's now."""

    pid: int
    file: RenamedSocket
    is_taken: bool


class _Bound(NamedTuple):
    pid: int
    name: str
    inode: int
    path: str  # of its file, as the kernel has it now
    uid: int
    gid: int
    mode: int


def renamed(any_pid: int, pids: Iterable[int]) -> list[Found]:
    """The renamed sockets of the processes of a container, *any_pid* among them.

    A name in another directory is found after a rename, but not after a link.
    """
    bound = list(_bound(pids))
    if not bound:
        return []

    def look() -> list[tuple[list[str], bool, bool]]:
        return [_names(b) for b in bound]

    answers = namespaces.inside([f"/proc/{any_pid}/ns/mnt"], look)
    return [
        Found(
            b.pid,
            RenamedSocket(b.name, tuple(names), is_kept, b.uid, b.gid, b.mode),
            is_taken,
        )
        for b, (names, is_kept, is_taken) in zip(bound, answers, strict=True)
        if names
    ]


def put_in_place(init_pid: int, files: Sequence[RenamedSocket]) -> list[str]:
    """Give the files of restored sockets their other names; a line for each failure.

    Only sockets are replaced, because the names come from a checkpoint.
    """
    if not files:
        return []

    def place() -> list[str]:
        return [line for file in files for line in _place(file)]

    failures: list[str] = namespaces.inside([f"/proc/{init_pid}/ns/mnt"], place)
    return failures


def _bound(pids: Iterable[int]) -> Iterator[_Bound]:
    """The sockets that a restore binds to a path again, except those that end meanwhile."""
    for found in socket_facts.find(pids):
        with (
            suppress(OSError),
            socket.socket(fileno=linux.copy_descriptor(found.pid, found.fd)) as copy,
        ):
            if copy.family == socket.AF_UNIX and not _is_connected_stream(copy):
                name = os.fsdecode(copy.getsockname())
                if name.startswith("/"):
                    with closing_fd(fcntl.ioctl(copy, _SIOCUNIXFILE)) as file_fd:
                        path, status = os.readlink(f"/proc/self/fd/{file_fd}"), os.fstat(file_fd)
                    owner = (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
                    yield _Bound(found.pid, name, status.st_ino, path, *owner)


def _is_connected_stream(copy: socket.socket) -> bool:
    """Whether it is a connection's end: it shows the listener's name, and CRIU does not bind it."""
    if copy.type == socket.SOCK_DGRAM:
        return False
    with suppress(OSError):
        copy.getpeername()
        return True
    return False


def _names(bound: _Bound) -> tuple[list[str], bool, bool]:
    """A socket file's other names; whether it has its first name, and whether another file has."""
    directory, base = os.path.split(bound.name)
    first = os.path.join(os.path.realpath(directory), base)
    names = {bound.path} if _inode(bound.path) == bound.inode else set()
    parent = os.path.dirname(first)
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(parent) as entries:
        names |= {entry.path for entry in entries if entry.inode() == bound.inode}
    inode = _inode(first)
    return sorted(names - {first}), inode == bound.inode, inode not in {0, bound.inode}


def _inode(path: str) -> int:
    with suppress(FileNotFoundError, NotADirectoryError):
        return os.lstat(path).st_ino
    return 0


def _place(file: RenamedSocket) -> Iterator[str]:
    """Link the file to its names, and rename it to the last one unless the first name is kept."""
    for at, name in enumerate(file.names, 1):
        move = os.link if file.is_kept or at < len(file.names) else os.rename
        try:
            if not stat.S_ISSOCK(os.lstat(file.bound).st_mode):
                yield f"the unix socket {name} was not bound to {file.bound}"
            elif _inode(name) == _inode(file.bound):
                continue
            elif _has_no_file_but_a_socket(name):
                move(file.bound, name)
            else:
                yield f"the unix socket {name} has lost its name to another file"
        except OSError as error:
            yield f"the unix socket {name} has lost its name: {error.strerror}"


def _has_no_file_but_a_socket(name: str) -> bool:
    """Whether the name is free; a stale socket file there is removed."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(name).st_mode):
            return False
        os.unlink(name)
    return True
