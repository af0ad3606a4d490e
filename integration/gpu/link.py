"""Copying a directory to another node, over several connections at once.

Stands in for a transfer: no digests, nothing resumed. What is received is written, or thrown away
if that is asked for, which shows what the link alone takes.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

STREAMS = 8
PORT = 7711
BUFFER_BYTES = 4 << 20


def send(directory: Path, target: str | None, address: str) -> float:
    """Copy everything below *directory* to *target* on the node at *address*; its seconds.

    Without a target it is thrown away there.
    """
    paths = [path for path in directory.rglob("*") if path.is_file()]
    paths.sort(key=lambda path: path.stat().st_size, reverse=True)
    begin = time.monotonic()
    with ThreadPoolExecutor(STREAMS) as threads:
        list(threads.map(lambda path: _send_file(path, directory, target, address), paths))
    return time.monotonic() - begin


def _send_file(path: Path, directory: Path, target: str | None, address: str) -> None:
    name = f"{target}/{path.relative_to(directory)}" if target else os.devnull
    head = {"name": name, "size_bytes": path.stat().st_size}
    with socket.create_connection((address, PORT)) as connection, path.open("rb") as file:
        connection.sendall(json.dumps(head).encode() + b"\n")
        connection.sendfile(file)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b"+", f"{name} did not arrive"


def serve(address: str) -> None:
    """Receive what others send to *address*, in threads of this process."""
    listener = socket.create_server((address, PORT), backlog=64)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_receive, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def _receive(connection: socket.socket) -> None:
    buffer = memoryview(bytearray(BUFFER_BYTES))
    with connection:
        head = b""
        while not head.endswith(b"\n"):
            head += connection.recv(1)
        told = json.loads(head)
        path = Path(told["name"])
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        left = told["size_bytes"]
        with path.open("wb", buffering=0) as file:
            while left and (received := connection.recv_into(buffer)):
                file.write(buffer[:received])
                left -= received
        if not left:
            connection.sendall(b"+")
