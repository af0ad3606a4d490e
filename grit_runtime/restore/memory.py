"""Restoring the memory of a container that CRIU has not dumped: heaps, and what was on its GPUs."""

from __future__ import annotations

from grit_runtime.errors import ImageError
from grit_runtime.files import checkpoint_dir, confine
from grit_runtime.files.checkpoint_dir import PARENT
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.restore import gate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from grit_runtime import log
    from grit_runtime.files.checkpoint_dir import Checkpoint
    from grit_runtime.model.dump import Dump
    from grit_runtime.model.manifest import Container, File
    from grit_runtime.model.memory_range import MemoryFile
    from grit_runtime.restore.attempts import Request


def find(
    request: Request,
    sealed: Checkpoint,
    container: Container,
    checkpoint_fd: int,
    dump: Dump,
    timeline: log.Timeline,
) -> dict[File, MemoryFile]:
    """The memory that grit fills in itself; pids are the dump's. What CRIU is to find is verified.

    DigestError if that is not what was dumped.
    """
    if PARENT not in dump.names:
        return {}
    from grit_runtime.dump import moved_memory

    images_path = (container.name, "checkpoint")
    unread = checkpoint_dir.moved_memory(sealed, container)
    found = {}
    if unread:
        with closing_fd(confine.descend(checkpoint_fd, images_path)) as images_fd:
            found = moved_memory.in_dump(images_fd, dump)
    moved = {unread.pop("/".join((*images_path, name))): file for name, file in found.items()}
    if unread:
        gate.memory_is_here(request, timeline)
    checkpoint_dir.refuse(
        request.checkpoint_path, checkpoint_dir.corrupt_files(checkpoint_fd, unread.values())
    )
    return moved


def left_out(images_fd: int, moved: Mapping[File, MemoryFile]) -> dict[str, bytes]:
    """The images that make CRIU leave this memory empty."""
    if not moved:
        return {}
    from grit_runtime.dump import moved_memory

    return moved_memory.left_out(images_fd, moved.values())


def fill(
    request: Request, moved: dict[File, MemoryFile], pids: Mapping[int, int], timeline: log.Timeline
) -> None:
    """Fill in the memory that CRIU has left out of stopped tasks.

    *pids* maps the dump's pids to the node's. DigestError if it is not what was dumped.
    """
    from grit_runtime.tasks import memory_copy

    gone = [str(file.pid) for file in moved.values() if file.pid not in pids]
    if gone:
        raise ImageError(f"process {gone[0]}, whose memory was moved, did not come back")
    gate.memory_is_here(request, timeline)
    with timeline.phase("memory", size_bytes=sum(file.size_bytes for file in moved)):
        here = [
            file._replace(pid=pids[file.pid], digest=listed.digest)
            for listed, file in moved.items()
        ]
        digests = memory_copy.fill(here)
    checkpoint_dir.refuse(request.checkpoint_path, checkpoint_dir.digest_mismatches(moved, digests))
