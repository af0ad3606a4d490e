"""Giving a file the attributes of a layer's member."""

from __future__ import annotations

import os
import stat

from grit_runtime.wire import layer, tar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.wire.tar import Member


def set_by_name(parent_fd: int, name: bytes, member: Member) -> None:
    # An O_PATH descriptor stays on the file, or the symbolic link, whatever becomes of its name.
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
    try:
        set_all(f"/proc/self/fd/{fd}", member)
    finally:
        os.close(fd)


def set_all(file: int | str, member: Member) -> None:
    """The attributes of *member* for a file that is open, or a name that leads to one."""
    # In this order: chown clears setuid bits and capabilities, chmod changes an ACL.
    status = os.stat(file)
    has_owner = (status.st_uid, status.st_gid) == (member.uid, member.gid)
    if not has_owner:
        os.chown(file, member.uid, member.gid)
    if member.kind != tar.SYMLINK and not (
        has_owner and stat.S_IMODE(status.st_mode) == member.mode
    ):
        os.chmod(file, member.mode)
    _set_xattrs(file, member.xattrs)
    os.utime(file, ns=(member.mtime_ns, member.mtime_ns))


def _set_xattrs(file: int | str, xattrs: dict[bytes, bytes]) -> None:
    for name in map(os.fsencode, os.listxattr(file)):
        if layer.is_carried(name) and name not in xattrs:
            os.removexattr(file, name)
    for name, value in xattrs.items():
        if layer.is_carried(name):
            os.setxattr(file, name, value)
