"""ID-mapped mounts: their files belong to other users and groups than on disk.

Spec: mount_setattr(2), open_tree(2), move_mount(2), user_namespaces(7), containerd v2.1.9
core/mount/mount_idmapped*.go.
"""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import contextmanager, suppress

from grit_runtime.errors import InvalidArgumentError
from grit_runtime.host import linux
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# The same on all processors.
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY = 1
_MOUNT_ATTR_IDMAP = 1 << 20
_CLONE_NEWUSER = 1 << 28


class IdMaps(NamedTuple):
    """uid_map and gid_map of a user namespace: lines of inside, outside and length."""

    uids: str
    gids: str


class _MountAttributes(ctypes.Structure):
    """``struct mount_attr``."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns"))


def decode(uidmap: str, gidmap: str) -> IdMaps:
    """The maps in mount options of containerd, ``INSIDE:OUTSIDE:LENGTH`` with commas between."""
    return IdMaps(_lines("uidmap", uidmap), _lines("gidmap", gidmap))


def _lines(name: str, option: str) -> str:
    ranges = [part.split(":") for part in option.split(",")]
    if not all(len(words) == 3 and all(word.isdecimal() for word in words) for words in ranges):
        raise InvalidArgumentError(
            f"mount option {name}={option}: expected INSIDE:OUTSIDE:LENGTH, with commas between"
        )
    return "".join(f"{' '.join(words)}\n" for words in ranges)


@contextmanager
def user_namespace(maps: IdMaps) -> Iterator[int]:
    """A descriptor of a user namespace without processes; OSError if it cannot be made."""
    ready_fd, write_fd = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _live_in_user_namespace(parent, write_fd)
    os.close(write_fd)
    try:
        with open(ready_fd, "rb") as ready:
            number = int(ready.read(4) or 0)
        if number:
            raise OSError(number, f"unshare: {os.strerror(number)}", "user namespace")
        for name, lines in (("uid_map", maps.uids), ("gid_map", maps.gids)):
            with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
                file.write(lines)
        userns_fd = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):  # a shim waits for all its children in another thread
            os.waitpid(pid, 0)
    with closing_fd(userns_fd):
        yield userns_fd


def _live_in_user_namespace(parent: int, ready_fd: int) -> None:
    """Enter a new user namespace, write the result to *ready_fd*, and wait to be killed."""
    number = 0
    try:
        linux.die_with_parent(parent)
        linux.call("unshare", "user namespace", _CLONE_NEWUSER)
    except OSError as error:
        number = error.errno or 0
    finally:
        os.write(ready_fd, b"%4d" % number)
        signal.pause()
        os._exit(0)


def clone(source: str, place: str, userns_fd: int, *, read_only: bool = False) -> None:
    """Mount at *place* what is at *source*, mapped as the namespace says. OSError names either."""
    copied = (_AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | os.O_CLOEXEC)
    with closing_fd(linux.result("syscall", source, _SYS_OPEN_TREE, *copied)) as tree_fd:
        attributes = _MountAttributes(
            set=_MOUNT_ATTR_IDMAP | _MOUNT_ATTR_RDONLY * read_only, userns=userns_fd
        )
        arguments = (ctypes.byref(attributes), ctypes.c_size_t(ctypes.sizeof(attributes)))
        linux.call("syscall", source, _SYS_MOUNT_SETATTR, tree_fd, b"", _AT_EMPTY_PATH, *arguments)
        target = (_AT_FDCWD, os.fsencode(place), _MOVE_MOUNT_F_EMPTY_PATH)
        linux.call("syscall", place, _SYS_MOVE_MOUNT, tree_fd, b"", *target)
