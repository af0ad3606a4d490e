"""Sending memory to a store while CRIU dumps the rest: it is ready first, and most of the bytes."""

from __future__ import annotations

import os
from contextlib import contextmanager

from grit_runtime import log
from grit_runtime.errors import CommandError
from grit_runtime.host import process
from grit_runtime.model.manifest import File

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from grit_runtime.checkpoint.order import Context
    from grit_runtime.model.memory_range import MemoryFile


@contextmanager
def begun(context: Context, saved: list[MemoryFile]) -> Iterator[Callable[[], str]]:
    """Send what was *saved* to the order's store, by a child, while the block runs.

    The block gets a function that waits until all is sent and returns what `push` wants to know;
    "" if nothing was sent. That it could not be sent is no failure of the checkpoint.
    """
    if not context.order.store or not saved:
        yield lambda: ""
        return

    size_bytes = sum(file.size_bytes for file in saved)

    def send() -> str:
        from grit_runtime.store import push, records  # few checkpoints are pushed at once
        from grit_runtime.store.backend import open_store

        key = records.file_key(context.config.store_key)
        files = [File(os.path.basename(m.path), m.size_bytes, m.digest) for m in saved]
        store = open_store(context.order.store, make=True)
        return push.begin(context.memory_dir, files, store, key)

    with process.beside(send) as sent:

        def wait() -> str:
            try:
                with context.timeline.phase("early push", size_bytes=size_bytes):
                    return str(sent())
            except CommandError as error:
                log.warning("memory is sent when the checkpoint is pushed", reason=error)
                return ""

        yield wait
