"""Sending memory to a store while CRIU dumps the rest: it is ready first, and most of the bytes."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack, contextmanager

from grit_runtime import log
from grit_runtime.errors import CommandError, GritError, one_line
from grit_runtime.host import process
from grit_runtime.model.manifest import File

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from grit_runtime.checkpoint.order import Context
    from grit_runtime.model.memory_range import MemoryFile


@contextmanager
def begun(context: Context, saved: list[MemoryFile]) -> Iterator[Callable[[], str]]:
    """Send what was *saved* to the order's store, by another process, while the block runs.

    The block gets a function that waits until all is sent and returns what `push` wants to know;
    "" if nothing was sent. That it could not be sent is no failure of the checkpoint.
    """
    if not context.order.store or not saved:
        yield lambda: ""
        return

    size_bytes = sum(file.size_bytes for file in saved)
    asked = {
        "directory": context.memory_dir,
        "files": [(os.path.basename(m.path), m.size_bytes, m.digest) for m in saved],
        "store": context.order.store,
        "key": context.config.store_key,
    }
    # Not by fork: a library of stores that this process has used has threads, which a child lacks.
    argv = process.python(__name__, json.dumps(asked))
    child = process.start(argv, token=token(context.tool.token))
    with ExitStack() as unheard:
        for fd in (child.out_fd, child.err_fd):
            unheard.callback(os.close, fd)
        unheard.callback(process.kill, child.pid)

        def wait() -> str:
            unheard.pop_all()
            try:
                with context.timeline.phase("early push", size_bytes=size_bytes):
                    return process.output(child).decode()
            except CommandError as error:
                log.warning("memory is sent when the checkpoint is pushed", reason=error)
                return ""

        yield wait


def token(operation: str) -> str:
    """What the process carries in a checkpoint with the token *operation*, which it may outlast."""
    return f"{operation}.early"


def main(argument: str) -> None:
    """What the process does: it prints how the names of the packs that it has sent begin."""
    from grit_runtime.store import push, records
    from grit_runtime.store.backend import open_store

    asked = json.loads(argument)
    files = [File(*fields) for fields in asked["files"]]
    try:
        store = open_store(asked["store"], make=True)
        sent = push.begin(asked["directory"], files, store, records.file_key(asked["key"]))
    except (GritError, OSError) as error:
        sys.exit(one_line(error))
    sys.stdout.write(sent)
