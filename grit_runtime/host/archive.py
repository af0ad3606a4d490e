"""Unpacking the tar archives that container engines export a checkpoint as.

An archive is input from outside: nothing but files and directories is taken out of it, below a
directory of our own, within the given limits. Blocking.
"""

from __future__ import annotations

import errno
import os

from grit_runtime.errors import ImageError
from grit_runtime.host import confine, layer_source
from grit_runtime.wire import layer, tar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.host.layer_source import Source
    from grit_runtime.wire.layer import Limits
    from grit_runtime.wire.tar import Member


def unpack(archive_fd: int, into_fd: int, limits: Limits) -> None:
    """Unpack the archive, plain or gzip, into the empty directory *into_fd*.

    Files are 0600 and directories 0700, whatever the archive says. ImageError for what is no
    well-formed archive, holds anything else than files and directories, or is over a limit.
    """
    source = layer_source.open_source(archive_fd)
    tally = layer.Tally(limits)
    while (member := tar.read_member(source.read)) is not None:
        tally.add(member)
        start = source.position
        _put(member, source, into_fd)
        source.skip(start + member.size_bytes + tar.padding(member.size_bytes) - source.position)
    source.finish()


def _put(member: Member, source: Source, into_fd: int) -> None:
    if member.kind not in {tar.FILE, tar.DIRECTORY}:
        raise ImageError(
            f"archive: {tar.shown(member.name)} has tar type {member.kind}, expected files and "
            "directories only"
        )
    *parents, name = layer.parse_path(member.name) or (b"",)
    if not name:
        return  # the archive's root
    parent_fd = confine.descend(into_fd, parents)
    try:
        if member.kind == tar.DIRECTORY:
            os.mkdir(name, 0o700, dir_fd=parent_fd)
        else:
            _put_file(member.size_bytes, source, parent_fd, os.fsdecode(name))
    finally:
        os.close(parent_fd)


def _put_file(size_bytes: int, source: Source, parent_fd: int, name: str) -> None:
    fd = confine.open_beneath(parent_fd, name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        source.copy_to(fd, size_bytes)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        raise ImageError(f"archive: ends within {name!r}; copy it again") from error
    else:
        os.ftruncate(fd, size_bytes)
    finally:
        os.close(fd)
