"""The zygote: a process that has imported all that a shim needs, and becomes one by fork.

So a pod's shim starts in a few milliseconds, and shares its memory with the others. It serves only
the caller's own code, and root; when it cannot serve, or is dead, `start` does all by itself.
"""

from __future__ import annotations

import fcntl
import gc
import os
import signal
import socket
import struct
import sys
from contextlib import suppress

from grit_runtime.errors import GritError, one_line
from grit_runtime.shim import main, start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

LOCK = "/run/grit/zygote.lock"
LISTEN_FDS_START = 3  # sd_listen_fds(3)
REQUEST_TIMEOUT_S = 5
REQUEST_LIMIT_BYTES = 1 << 20

_PEER = (socket.SOL_SOCKET, socket.SO_PEERCRED)


def run() -> NoReturn:
    """Serve until the package has become another one, then make way for a zygote of that."""
    listener = _listener()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how a shim has ended
    born = main.identity()
    gc.collect()
    gc.freeze()  # else a collection in a child would copy every page that it looks at
    while True:
        connection, _ = listener.accept()
        if main.identity() != born:
            sys.exit(0)
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _answer(connection, born)
        connection.close()


def _answer(connection: socket.socket, born: str) -> NoReturn:
    """Become the shim that is asked for. Closing without an answer makes the caller do it all."""
    caller_pid, *ids = struct.unpack("3i", connection.getsockopt(*_PEER, struct.calcsize("3i")))
    if ids != [os.getuid(), os.getgid()] or not _shares_mounts(caller_pid):
        os._exit(1)
    connection.settimeout(REQUEST_TIMEOUT_S)
    request = start.Request.parse(connection.recv(REQUEST_LIMIT_BYTES))
    if request.identity != born:
        os._exit(1)
    try:
        place = start.find(request)
        if place.listener is not None:
            start.take_place(request, caller_pid)
    except (GritError, OSError) as error:
        connection.send(main.FAILED + one_line(error).encode())
        os._exit(1)
    connection.send(place.address.encode())
    connection.close()
    if place.listener is not None:
        start.serve(request, place.listener)
    os._exit(0)


def _shares_mounts(pid: int) -> bool:
    """Whether what we mount is where *pid* looks for it."""
    ours, theirs = (os.readlink(f"/proc/{who}/ns/mnt") for who in ("self", pid))
    return ours == theirs


def _listener() -> socket.socket:
    """systemd's socket, or one of our own; the process ends if another zygote has that."""
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        return socket.socket(fileno=LISTEN_FDS_START)
    os.makedirs(os.path.dirname(LOCK), mode=0o700, exist_ok=True)
    lock_fd = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(0)
    with suppress(FileNotFoundError):
        os.unlink(main.ZYGOTE_SOCKET)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    mask = os.umask(0o177)
    listener.bind(main.ZYGOTE_SOCKET)
    os.umask(mask)
    listener.listen(128)
    return listener
