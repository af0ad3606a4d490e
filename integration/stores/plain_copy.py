"""Runs by itself: a directory copied over a network by ten workers, a stream a file.

That is what upstream GRIT's agent does with a checkpoint (pkg/gritagent/copy).

usage: python plain_copy.py receive DIRECTORY HOST    prints its port; ends after one directory
       python plain_copy.py send DIRECTORY HOST PORT
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

WORKERS = 10
_BUFFER_BYTES = 1 << 20
_HEAD = struct.Struct("<I")


def send(directory: Path, address: tuple[str, int]) -> None:
    files = sorted(path for path in directory.rglob("*") if path.is_file())

    def work(path: Path) -> None:
        with socket.create_connection(address) as stream, path.open("rb") as file:
            name = os.fsencode(path.relative_to(directory))
            stream.sendall(_HEAD.pack(len(name)) + name)
            stream.sendfile(file)
            stream.shutdown(socket.SHUT_WR)
            stream.recv(1)  # it is on the disk

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(work, files))
    with socket.create_connection(address) as stream:
        stream.sendall(_HEAD.pack(0))


def receive(directory: Path, host: str) -> None:
    listener = socket.create_server((host, 0), backlog=64)
    print(listener.getsockname()[1], flush=True)
    with ThreadPoolExecutor(WORKERS + 1) as pool:
        while True:
            stream, _ = listener.accept()
            (size_bytes,) = _HEAD.unpack(stream.recv(_HEAD.size, socket.MSG_WAITALL))
            if not size_bytes:
                return
            name = stream.recv(size_bytes, socket.MSG_WAITALL)
            pool.submit(_store, stream, directory / os.fsdecode(name))


def _store(stream: socket.socket, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with memoryview(bytearray(_BUFFER_BYTES)) as view, path.open("wb") as file, stream:
        while count := stream.recv_into(view):
            file.write(view[:count])
        file.flush()
        os.fsync(file.fileno())
        stream.sendall(b".")


def main() -> None:
    what, directory, host, *port = sys.argv[1:]
    if what == "send":
        send(Path(directory), (host, int(port[0])))
    else:
        receive(Path(directory), host)


main()
