"""Runs on a node: speaks the protocol of exec, attach and port-forward, as `kubectl` does.

Arguments: the URL that CRI gave, what to send on channel 0, and the text to wait for on any. Writes
what came on each channel, as JSON, once the text has come or the other side has closed. Spec:
RFC 6455 and Kubernetes' v4.channel.k8s.io, in which a message begins with its channel.
"""

import json
import socket
import struct
import sys
from urllib.parse import urlsplit

BINARY, CLOSE, PING, PONG = 2, 8, 9, 10


def main() -> None:
    url, typed, awaited = urlsplit(sys.argv[1]), sys.argv[2], sys.argv[3]
    received = dict.fromkeys(range(4), b"")
    with socket.create_connection((url.hostname, url.port), timeout=30) as connection:
        connection.sendall(
            f"GET {url.path}?{url.query} HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: Upgrade\r\n"
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            "Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n".encode()
        )
        stream = connection.makefile("rb")
        answer = stream.readline()
        assert b" 101 " in answer, answer
        while stream.readline() != b"\r\n":
            pass
        if typed:
            connection.sendall(frame(BINARY, b"\0" + typed.encode()))
        while not awaited or not any(awaited.encode() in data for data in received.values()):
            opcode, length = stream.read(2)
            length &= 0x7F
            if length == 126:
                (length,) = struct.unpack(">H", stream.read(2))
            data = stream.read(length)
            if opcode & 15 == CLOSE:
                break
            if opcode & 15 == PING:
                connection.sendall(frame(PONG, data))
            elif data:
                received[data[0]] += data[1:]
    json.dump([data.decode("latin-1") for data in received.values()], sys.stdout)


def frame(opcode: int, data: bytes) -> bytes:
    """A client's frame, masked with zeros; short ones are enough here."""
    return bytes([0x80 | opcode, 0x80 | len(data), 0, 0, 0, 0]) + data


main()
