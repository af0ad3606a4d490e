"""Runs by itself on two nodes: a file over one TLS connection, and what becomes of it there.

The certificates are those of the nodes' agents.

usage: python tls_stream.py send FILE PEER HOST PORT
       python tls_stream.py receive FILE      prints its port, and then the seconds until the file
                                              is hashed and on the disk; "-" throws it away
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
import time

from blake3 import blake3

_DIRECTORY = "/etc/grit/agent"
_BUFFER_BYTES = 4 << 20


def _context(side: int) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(f"{_DIRECTORY}/node.pem", f"{_DIRECTORY}/node.key")
    context.load_verify_locations(f"{_DIRECTORY}/ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def send(path: str, peer: str, host: str, port: str) -> None:
    with (
        socket.create_connection((host, int(port))) as plain,
        _context(ssl.PROTOCOL_TLS_CLIENT).wrap_socket(plain, server_hostname=peer) as stream,
        open(path, "rb", buffering=0) as file,
        memoryview(bytearray(_BUFFER_BYTES)) as view,
    ):
        while count := file.readinto(view):
            stream.sendall(view[:count])
        stream.unwrap()  # or what the other side has sent, and nobody reads, would reset it


def receive(path: str) -> None:
    listener = socket.create_server(("", 0))
    print(listener.getsockname()[1], flush=True)
    plain, _ = listener.accept()
    begin = time.monotonic()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) if path != "-" else -1
    hashed = blake3()
    with (
        _context(ssl.PROTOCOL_TLS_SERVER).wrap_socket(plain, server_side=True) as stream,
        memoryview(bytearray(_BUFFER_BYTES)) as view,
    ):
        while count := _filled(stream, view):
            if fd >= 0:
                hashed.update(view[:count])
                os.write(fd, view[:count])
        stream.unwrap()
    if fd >= 0:
        os.fsync(fd)
    print(time.monotonic() - begin, flush=True)


def _filled(stream: ssl.SSLSocket, view: memoryview) -> int:
    done = 0
    while done < len(view) and (count := stream.recv_into(view[done:])):
        done += count
    return done


if __name__ == "__main__":
    (send if sys.argv[1] == "send" else receive)(*sys.argv[2:])
