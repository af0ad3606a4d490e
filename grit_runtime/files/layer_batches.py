"""Writing a layer file in batches, by several forks of this process, in a fixed order.

A batch is made before its offset in the file is known. The forks take turns to announce the size of
theirs; the next batch begins where it ends, and both are written at the same time.
"""

from __future__ import annotations

import os
import struct

from grit_runtime.files import fdcopy
from grit_runtime.startup.named import NamedTuple
from grit_runtime.wire import layer, tar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from grit_runtime.wire.layer import Limits
    from grit_runtime.wire.tar import Member

# So many entries take one process a few times as long as forking it.
MANY = 1000
# Entries of a batch: with more, forks wait less for each other; but small files are kept in memory.
BATCH = 256

_PROGRESS = struct.Struct("<4Q")
_FIRST = struct.Struct("<3Q")  # device and number of an inode, entry


class Progress(NamedTuple):
    """What has been written, or will be by forks that had their turns."""

    size_bytes: int = 0
    members: int = 0
    data_bytes: int = 0
    metadata_bytes: int = 0


class Batch:
    """Members with their data."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._members: list[Member] = []
        self._gathered = fdcopy.Gathered()

    def add(self, member: Member, *, file_fd: int = -1) -> None:
        """Add *member*; *file_fd* has its data, if any, and may be closed afterwards."""
        self._members.append(member)
        self._gathered.add(tar.encode(member))
        if member.size_bytes:
            self._gathered.add_file(file_fd, member.size_bytes, member.name)
            self._gathered.add(bytes(tar.padding(member.size_bytes)))

    def counted(self, before: Progress) -> Progress:
        """*before* plus this batch. ImageError over the limits."""
        tally = layer.Tally(self._limits, *before[1:])
        for member in self._members:
            tally.add(member)
        size_bytes = before.size_bytes + self._gathered.size_bytes
        return Progress(size_bytes, tally.members, tally.data_bytes, tally.metadata_bytes)

    def write(self, fd: int, offset: int) -> None:
        """Write the batch, and empty it."""
        self._gathered.write(fd, offset)
        self._members.clear()


class Turns:
    """Passes the turn, with the progress of the layer, from one fork to the next."""

    def __init__(self, copies: int) -> None:
        self._pipes = [os.pipe() for _ in range(copies)]
        self._held: Progress | None = None
        self._first: dict[tuple[int, int], int] = {}
        self._first_fd = os.memfd_create("first names")  # shared by all forks
        self._known_bytes = 0

    def close(self) -> None:
        for fd in (self._first_fd, *(fd for ends in self._pipes for fd in ends)):
            os.close(fd)

    def of(self, number: int, batches: Sequence[int]) -> Sequence[int]:
        """Those of all *batches* that the fork *number* writes."""
        return batches[number :: len(self._pipes)]

    def give(self, number: int, progress: Progress) -> None:
        os.write(self._pipes[number % len(self._pipes)][1], _PROGRESS.pack(*progress))

    def take(self, number: int) -> Progress:
        """Wait for this fork's turn, which then lasts until `write`."""
        if self._held is None:
            data = os.read(self._pipes[number][0], _PROGRESS.size)
            self._held = Progress(*_PROGRESS.unpack(data))
        return self._held

    def first(self, status: os.stat_result, index: int) -> int:
        """The first entry of this file, *index* if there was none; to be called in the turn."""
        size_bytes = os.fstat(self._first_fd).st_size
        news = os.pread(self._first_fd, size_bytes - self._known_bytes, self._known_bytes)
        self._first |= {(device, inode): at for device, inode, at in _FIRST.iter_unpack(news)}
        file = status.st_dev, status.st_ino
        if file not in self._first:
            self._first[file] = index
            os.pwrite(self._first_fd, _FIRST.pack(*file, index), size_bytes)
            size_bytes += _FIRST.size
        self._known_bytes = size_bytes
        return self._first[file]

    def write(self, number: int, batch: Batch, fd: int) -> Progress:
        """Write *batch* in this fork's turn, and pass the turn on; the progress after it."""
        before = self.take(number)
        after = batch.counted(before)
        self._held = None
        self.give(number + 1, after)
        batch.write(fd, before.size_bytes)
        return after
