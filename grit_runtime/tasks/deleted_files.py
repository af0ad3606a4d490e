"""Deleted files that processes have open or mapped; CRIU keeps a copy for each container.

Spec: proc_pid_fd(5), proc_pid_maps(5), proc_pid_map_files(5).
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from grit_runtime.host import procfs
from grit_runtime.host.procfs import open_links
from grit_runtime.model.process_preflight import DeletedFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_DELETED = " (deleted)"


def used(pids: Iterable[int]) -> set[DeletedFile]:
    """The deleted files of *pids*; what disappears meanwhile is left out."""
    return {file for pid in pids for file in (*_open(pid), *_mapped(pid))}


def _open(pid: int) -> Iterator[DeletedFile]:
    for fd, name in open_links(pid).items():
        if name.endswith(_DELETED):
            link = f"/proc/{pid}/fd/{fd}"
            with suppress(FileNotFoundError, ProcessLookupError):
                is_written = bool(os.lstat(link).st_mode & stat.S_IWUSR)  # the descriptor's mode
                yield _file(link, name, is_written=is_written)


def _mapped(pid: int) -> Iterator[DeletedFile]:
    for line in procfs.text(pid, "maps").splitlines():
        if line.endswith(_DELETED):
            area, flags, _, _, _, name = line.split(None, 5)
            start, end = (f"{int(address, 16):x}" for address in area.split("-"))
            with suppress(FileNotFoundError, ProcessLookupError):
                is_written = "w" in flags and "s" in flags
                yield _file(f"/proc/{pid}/map_files/{start}-{end}", name, is_written=is_written)


def _file(link: str, name: str, *, is_written: bool) -> DeletedFile:
    status = os.stat(link)
    return DeletedFile(status.st_dev, status.st_ino, name.removesuffix(_DELETED), is_written)
