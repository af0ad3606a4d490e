"""Unpacking the tar archives that container engines export a checkpoint as.

An archive is untrusted: only files and directories are unpacked, below a private directory, within
the given limits. Blocking.
"""

from __future__ import annotations

import errno
import os

from grit_runtime.errors import ImageError
from grit_runtime.files import confine, layer_source
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.wire import layer, tar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.files.layer_source import Source
    from grit_runtime.wire.layer import Limits
    from grit_runtime.wire.tar import Member


def unpack(archive_fd: int, into_fd: int, limits: Limits) -> None:
    """Unpack the archive, plain or gzip, into the empty directory *into_fd*.

    Files are 0600 and directories 0700, whatever the archive says. ImageError for a malformed
    archive, one with anything but files and directories, or one over a limit.
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
    with closing_fd(confine.descend(into_fd, parents)) as parent_fd:
        if member.kind == tar.DIRECTORY:
            os.mkdir(name, 0o700, dir_fd=parent_fd)
        else:
            _put_file(member.size_bytes, source, parent_fd, os.fsdecode(name))


def _put_file(size_bytes: int, source: Source, parent_fd: int, name: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with closing_fd(confine.open_beneath(parent_fd, name, flags)) as fd:
        try:
            source.copy_to(fd, size_bytes)
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            raise ImageError(f"archive: ends within {name!r}; copy it again") from error
        os.ftruncate(fd, size_bytes)
