"""Moves what comes out of one descriptor into another, on the event loop."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import stat

_SPLICE_BYTES = 1 << 20
_COPY_BYTES = 1 << 16


class Relay:
    """Moves all that comes out of *source_fd* into *sink_fd*, then closes both.

    Both are non-blocking, and its own from now on. Between pipes nothing is copied: the kernel
    moves the pages.
    """

    def __init__(self, source_fd: int, sink_fd: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._source_fd = source_fd
        self._sink_fd = sink_fd
        self._pending = b""
        pipes = all(stat.S_ISFIFO(os.fstat(fd).st_mode) for fd in (source_fd, sink_fd))
        self._move = self._splice if pipes else self._copy
        self.done: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(source_fd, self._run)

    def close(self) -> None:
        """Stop, whether or not the source has ended."""
        if self.done.done():
            return
        self._loop.remove_reader(self._source_fd)
        self._loop.remove_writer(self._sink_fd)
        os.close(self._source_fd)
        os.close(self._sink_fd)
        self.done.set_result(None)

    def _run(self) -> None:
        try:
            ended = self._move()
        except BlockingIOError:
            # splice does not say which side is not ready
            if self._pending or not _is_writable(self._sink_fd):
                self._loop.remove_reader(self._source_fd)
                self._loop.add_writer(self._sink_fd, self._resume)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                self._pending = b""  # a full disk costs the log, not the process that writes it
                return
            # EPIPE: nobody reads any more. EIO: nobody has the terminal open any more.
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
        if not self._pending:
            self._pending = os.read(self._source_fd, _COPY_BYTES)
            if not self._pending:
                return True
        while self._pending:
            self._pending = self._pending[os.write(self._sink_fd, self._pending) :]
        return False


def _is_writable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))
