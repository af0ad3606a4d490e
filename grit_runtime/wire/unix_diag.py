"""Asking the kernel about unix sockets, and its answer: which socket is at whose other end.

Spec: sock_diag(7), linux include/uapi/linux/unix_diag.h and netlink.h.
"""

from __future__ import annotations

import struct
import sys
from typing import NamedTuple

_AF_UNIX = 1
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST_DUMP = 0x301
_ALL_STATES = 0xFFFFFFFF
_SHOW_NAME_AND_PEER = 1 | 4
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NAME, _PEER = 0, 2

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBHIII8x")  # family, protocol, pad, states, inode, show, cookie
_SOCKET = struct.Struct("=BBBBI8x")  # family, type, state, pad, inode, cookie
_ATTRIBUTE = struct.Struct("=HH")  # length, type


class UnixSocket(NamedTuple):
    """A unix socket; *peer* is the inode of the one at its other end, 0 without."""

    inode: int
    peer: int
    name: str


def request() -> bytes:
    """The question for all unix sockets of a network namespace."""
    body = _REQUEST.pack(_AF_UNIX, 0, 0, _ALL_STATES, 0, _SHOW_NAME_AND_PEER)
    size = _HEADER.size + len(body)
    return _HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 0, 0) + body


def parse(data: bytes) -> tuple[list[UnixSocket], bool]:
    """The sockets in one datagram of the answer, and whether it was the last.

    ValueError if the kernel answered with an error, or in another form.
    """
    found: list[UnixSocket] = []
    while data:
        if len(data) < _HEADER.size:
            raise ValueError(f"netlink message of {len(data)} bytes, expected {_HEADER.size}")
        size, kind, *_ = _HEADER.unpack_from(data)
        if not _HEADER.size <= size <= len(data):
            raise ValueError(f"netlink message of {len(data)} bytes, its header says {size}")
        if kind == _NLMSG_DONE:
            return found, True
        if kind == _NLMSG_ERROR:
            raise ValueError("the kernel does not list unix sockets; load its module unix_diag")
        found.append(_socket(data[_HEADER.size : size]))
        data = data[_aligned(size) :]
    return found, False


def _socket(body: bytes) -> UnixSocket:
    if len(body) < _SOCKET.size:
        raise ValueError(f"unix_diag_msg of {len(body)} bytes, expected {_SOCKET.size}")
    *_, inode = _SOCKET.unpack_from(body)
    attributes = {}
    at = _SOCKET.size
    while at + _ATTRIBUTE.size <= len(body):
        size, kind = _ATTRIBUTE.unpack_from(body, at)
        attributes[kind] = body[at + _ATTRIBUTE.size : at + max(size, _ATTRIBUTE.size)]
        at += max(_aligned(size), _ATTRIBUTE.size)
    peer = int.from_bytes(attributes.get(_PEER, b""), sys.byteorder)
    # A path ends in a zero byte; an abstract name begins with one, which ss(8) shows as @.
    name = attributes.get(_NAME, b"").decode(errors="surrogateescape")
    name = name.rstrip("\0").replace("\0", "@")
    return UnixSocket(inode, peer, name)


def _aligned(size: int) -> int:
    return (size + 3) & ~3
