"""Where shims listen: one socket for each group of containers, in a directory of containerd's.

Spec: containerd v2.1.9 pkg/shim/util_unix.go (SocketAddress).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
from contextlib import contextmanager, suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

DIR = "/run/containerd/s"


def path_of(containerd_address: str, namespace: str, group: str) -> str:
    name = os.path.normpath(f"{containerd_address}/{namespace}/{group}")
    return f"{DIR}/{hashlib.sha256(name.encode()).hexdigest()}"


def token(path: str) -> str:
    """The token of all commands that the shim at this socket runs (host/process.py)."""
    return os.path.basename(path)


def claim(path: str) -> socket.socket | None:
    """A listening socket at *path*, replacing a dead shim's; None if a shim serves there."""
    os.makedirs(DIR, mode=0o700, exist_ok=True)
    with _locked():
        if serves(path):
            return None
        with suppress(FileNotFoundError):
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(mask)
        listener.listen()
        return listener


def serves(path: str) -> bool:
    """Whether a shim listens at *path*."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def remove_dead(path: str) -> None:
    """Remove the socket of a shim that has died, unless another serves there by now."""
    with suppress(FileNotFoundError), _locked():
        if not serves(path):
            os.unlink(path)


@contextmanager
def _locked() -> Iterator[None]:
    """Keep other calls of this program from replacing a dead socket meanwhile."""
    fd = os.open(DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
