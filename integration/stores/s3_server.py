"""Runs by itself: rclone as an S3 server at an address, with the status of ranges put right.

usage: python s3_server.py RCLONE DIRECTORY HOST:PORT KEY_ID,SECRET

The library that rclone serves S3 with answers a range with "200 OK" where S3 says "206 Partial
Content" (johannesboyne/gofakes3, pull request 121), and obstore takes that for no range. So what
is between client and server passes through here. Prints the port that it listens on.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from contextlib import suppress
from threading import Thread

_SERVING = re.compile(r"Starting s3 server on \[http://[^]]*:(\d+)/?\]")
_BUFFER_BYTES = 1 << 20
_OK, _PARTIAL = b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 206 Partial Content\r\n"


def start(rclone: str, directory: str, key: str) -> int:
    """The port that rclone serves on, at the loopback address."""
    process = subprocess.Popen(
        [
            *(rclone, "serve", "s3", directory, "--addr=127.0.0.1:0", f"--auth-key={key}"),
            "--config=/dev/null",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if found := _SERVING.search(line):
            Thread(target=process.stderr.read, daemon=True).start()
            return int(found[1])
    raise RuntimeError("rclone has not begun to serve")


def relay(source: socket.socket, target: socket.socket) -> None:
    """Pass on what comes until it ends.

    The head of an answer comes in one piece, and none before the one before has been passed on.
    """
    buffer = bytearray(_BUFFER_BYTES)
    with suppress(OSError), memoryview(buffer) as view:
        while count := source.recv_into(view):
            data = view[:count]
            if buffer.startswith(_OK) and b"\r\nContent-Range:" in bytes(data[:4096]):
                target.sendall(_PARTIAL)
                data = data[len(_OK) :]
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def main() -> None:
    rclone, directory, address, key = sys.argv[1:]
    port = start(rclone, directory, key)
    host, _, own_port = address.rpartition(":")
    listener = socket.create_server((host, int(own_port)), backlog=64)
    print(listener.getsockname()[1], flush=True)
    while True:
        client, _ = listener.accept()
        server = socket.create_connection(("127.0.0.1", port))
        for ends in ((client, server), (server, client)):
            ends[0].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            Thread(target=relay, args=ends, daemon=True).start()


main()
