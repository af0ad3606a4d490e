"""Moves data from one descriptor to another, on the event loop."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import stat

from grit_runtime.shim.threads import in_thread

_SPLICE_BYTES = 1 << 20
_COPY_BYTES = 1 << 16
_COPIES_AT_ONCE = 16  # a terminal gives 4 KiB at a time


class Relay:
    """Once started, moves all data from *source_fd* to *sink_fd*.

    Then it closes both, except *kept_fd*, which belongs to another object. The source does not
    block. A sink that does, a file, is written to and closed by threads: its disk may be slow, or
    away. Relays with the same *turn* write in the order in which they have read. Between pipes
    nothing is copied: the kernel moves the pages.
    """

    def __init__(
        self, source_fd: int, sink_fd: int, *, kept_fd: int = -1, turn: asyncio.Lock | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._source_fd = source_fd
        self._sink_fd = sink_fd
        self._kept_fd = kept_fd
        self._turn = turn or asyncio.Lock()
        self._pending = b""
        self._writing: asyncio.Task[None] | None = None
        self._sink_blocks = os.get_blocking(sink_fd)
        pipes = all(stat.S_ISFIFO(os.fstat(fd).st_mode) for fd in (source_fd, sink_fd))
        if self._sink_blocks:
            self._move = self._hand_over
        else:
            self._move = self._splice if pipes else self._copy
        self.done: asyncio.Future[None] = self._loop.create_future()

    def start(self) -> None:
        self._loop.add_reader(self._source_fd, self._run)

    def close(self) -> None:
        """Stop, whether or not the source has ended, or it was started."""
        if self.done.done():
            return
        self._loop.remove_reader(self._source_fd)
        if self._source_fd != self._kept_fd:
            os.close(self._source_fd)
        if not self._sink_blocks:
            self._loop.remove_writer(self._sink_fd)
            if self._sink_fd != self._kept_fd:
                os.close(self._sink_fd)
        elif self._writing is None:  # otherwise the writing thread closes it
            self._writing = self._loop.create_task(in_thread(os.close, self._sink_fd))
        self.done.set_result(None)

    def _run(self) -> None:
        try:
            ended = self._move()
        except BlockingIOError:
            # splice does not report which side is not ready
            if self._pending or not _is_writable(self._sink_fd):
                self._loop.remove_reader(self._source_fd)
                self._loop.add_writer(self._sink_fd, self._resume)
        except OSError:
            # EPIPE: there is no reader any more. EIO: no process has the terminal open any more.
            self.close()
        else:
            if ended:
                self.close()

    def _resume(self) -> None:
        self._loop.remove_writer(self._sink_fd)
        self._loop.add_reader(self._source_fd, self._run)
        self._run()

    def _splice(self) -> bool:
        flags = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
        return os.splice(self._source_fd, self._sink_fd, _SPLICE_BYTES, flags=flags) == 0

    def _copy(self) -> bool:
        for _ in range(_COPIES_AT_ONCE):
            if not self._pending:
                self._pending = os.read(self._source_fd, _COPY_BYTES)
                if not self._pending:
                    return True
            while self._pending:
                self._pending = self._pending[os.write(self._sink_fd, self._pending) :]
        return False

    def _hand_over(self) -> bool:
        """Read, and have a thread write it; nothing more is read until it is written."""
        try:
            data = os.read(self._source_fd, _COPY_BYTES)
        except BlockingIOError:
            return False
        if not data:
            return True
        self._loop.remove_reader(self._source_fd)
        self._writing = self._loop.create_task(self._write(data))
        return False

    async def _write(self, data: bytes) -> None:
        async with self._turn:
            error = await in_thread(_write_all, self._sink_fd, data)
        # A full disk costs the log, not the process that writes it.
        if error is not None and error.errno != errno.ENOSPC:
            self.close()
        self._writing = None
        if self.done.done():
            await in_thread(os.close, self._sink_fd)
        else:
            self._loop.add_reader(self._source_fd, self._run)


def _write_all(fd: int, data: bytes) -> OSError | None:
    try:
        while data:
            data = data[os.write(fd, data) :]
    except OSError as error:
        return error
    return None


def _is_writable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))
