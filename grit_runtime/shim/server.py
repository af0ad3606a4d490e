"""The running shim: its parts put together, from the listening socket to its last event."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import sys
from contextlib import suppress

from grit_runtime import log
from grit_runtime.shim import sockets
from grit_runtime.shim.children import Children
from grit_runtime.shim.events import Publisher
from grit_runtime.shim.runtime import Shim
from grit_runtime.shim.task import Task
from grit_runtime.shim.transport import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import NoReturn

FLUSH_TIMEOUT_S = 5
CLOSE_TIMEOUT_S = 5


def run(listener: socket.socket, *, namespace: str, events_address: str) -> NoReturn:
    """Serve on *listener* until containerd requests the shutdown, or a signal arrives."""
    faulthandler.register(signal.SIGUSR1)  # writes stack traces to the log
    asyncio.run(_serve(listener, namespace, events_address))
    sys.exit(0)


async def _serve(listener: socket.socket, namespace: str, events_address: str) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    publisher = Publisher(events_address, namespace)
    children = Children(sockets.token(listener.getsockname()))
    shim = Shim(namespace, children, publisher.publish)
    server = Server(Task(shim, ended.set).methods)
    await server.listen(listener)
    log.info("shim started", pid=os.getpid(), socket=listener.getsockname())
    await ended.wait()
    with suppress(FileNotFoundError):
        os.unlink(listener.getsockname())  # the next `start` must not find a shim that is ending
    await publisher.flush(FLUSH_TIMEOUT_S)
    with suppress(TimeoutError):
        await asyncio.wait_for(server.close(), CLOSE_TIMEOUT_S)
