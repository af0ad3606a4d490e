"""The kernel's messages about unix sockets and their peers.

Spec: sock_diag(7), linux include/uapi/linux/unix_diag.h and netlink.h.
"""

from __future__ import annotations

import struct
import sys

from grit_runtime.startup.named import NamedTuple

_AF_UNIX = 1
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST_DUMP = 0x301
_ALL_STATES = 0xFFFFFFFF
_SHOW = 1 | 4 | 8 | 16  # one bit for each attribute below, in their order
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NAME, _PEER, _ICONS, _QUEUES = 0, 2, 3, 4

_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBHIII8x")  # family, protocol, pad, states, inode, show, cookie
_SOCKET = struct.Struct("=BBBBI8x")  # family, type, state, pad, inode, cookie
_ATTRIBUTE = struct.Struct("=HH")  # length, type


class UnixSocket(NamedTuple):
    """A unix socket; *peer* is the inode of the one at its other end, 0 without.

    *waiting* are the inodes of sockets that connected to it and were not accepted yet, 0 for a
    closed one; *unsent_bytes* is what its peer has not received yet.
    """

    inode: int
    peer: int
    name: str
    waiting: tuple[int, ...] = ()
    unsent_bytes: int = 0


def request() -> bytes:
    """The question for all unix sockets of a network namespace."""
    body = _REQUEST.pack(_AF_UNIX, 0, 0, _ALL_STATES, 0, _SHOW)
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
    _, unsent_bytes = _numbers(attributes.get(_QUEUES, b""), 2)
    icons = attributes.get(_ICONS, b"")
    waiting = _numbers(icons, len(icons) // 4)
    # A path ends in a zero byte; an abstract name begins with one, which ss(8) shows as @.
    name = attributes.get(_NAME, b"").decode(errors="surrogateescape")
    name = name.rstrip("\0").replace("\0", "@")
    return UnixSocket(inode, peer, name, waiting, unsent_bytes)


def _numbers(data: bytes, count: int) -> tuple[int, ...]:
    """*count* numbers of four bytes; those that are not there are 0."""
    return struct.unpack(f"={count}I", data[: 4 * count].ljust(4 * count, b"\0"))


def _aligned(size: int) -> int:
    return (size + 3) & ~3
