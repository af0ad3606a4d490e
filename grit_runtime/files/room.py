"""Room on the disk for what is about to be written."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager

from grit_runtime.errors import RoomError
from grit_runtime.files import confine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


BLOCK_BYTES = 512  # of st_blocks, whatever the filesystem's own are


def used_bytes(upper_fd: int) -> int:
    """The least room that an upper directory takes when it is saved; it may change meanwhile."""
    statuses = (entry.stat for entry in confine.walk(upper_fd, changing=True))
    blocks = {(status.st_dev, status.st_ino): status.st_blocks for status in statuses}
    return sum(blocks.values()) * BLOCK_BYTES


def check_room(needed_bytes: int, directory_fd: int) -> None:
    """FailedPreconditionError if the filesystem of the directory has less room."""
    room = os.statvfs(directory_fd)
    free_bytes = room.f_bfree * room.f_frsize
    if needed_bytes > free_bytes:
        raise RoomError(
            f"{needed_bytes} bytes to write and {free_bytes} free on the filesystem of "
            f"{os.readlink(f'/proc/self/fd/{directory_fd}')}; make room there"
        )


@contextmanager
def named_if_full(what: str) -> Iterator[None]:
    """RoomError if the filesystem becomes full in the block; what it has written stays there."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise RoomError(
            f"{what}: its filesystem has become full; make room and do it again, which goes on "
            "from there"
        ) from None
