"""The socket options that grit restores: read at the checkpoint, compared and set at the restore.

Those that can be both asked for and set, that stay as they are set, and that mean the same in
another network. Left out, with CRIU to see to them: sizes of buffers, filters, devices. Numbers:
linux include/uapi/asm-generic/socket.h, include/uapi/linux/in.h, in6.h, netlink.h, tcp.h and udp.h.
"""

from grit_runtime.errors import ImageError

_SOCKET, _IP, _TCP, _UDP, _IPV6, _NETLINK = 1, 0, 6, 17, 41, 270

_NAMES = {
    # REUSEADDR, DONTROUTE, BROADCAST, KEEPALIVE, OOBINLINE, NO_CHECK, PRIORITY, LINGER, REUSEPORT,
    # PASSCRED, RCVLOWAT, RCVTIMEO, SNDTIMEO, TIMESTAMP, PASSSEC, TIMESTAMPNS, MARK, TIMESTAMPING,
    # RXQ_OVFL, WIFI_STATUS, PEEK_OFF, NOFCS, SELECT_ERR_QUEUE, BUSY_POLL, ZEROCOPY, TXREHASH,
    # PASSPIDFD
    _SOCKET: (
        *(2, 5, 6, 9, 10, 11, 12, 13, 15, 16, 18, 20, 21, 29, 34, 35, 36, 37, 40, 41, 42, 43),
        *(45, 46, 60, 74, 76),
    ),
    # TOS, TTL, HDRINCL, RECVOPTS, RETOPTS, PKTINFO, MTU_DISCOVER, RECVERR, RECVTTL, RECVTOS,
    # FREEBIND, PASSSEC, TRANSPARENT, RECVORIGDSTADDR, MINTTL, NODEFRAG, CHECKSUM,
    # BIND_ADDRESS_NO_PORT, RECVFRAGSIZE, RECVERR_RFC4884, MULTICAST_TTL, MULTICAST_LOOP,
    # MULTICAST_ALL, LOCAL_PORT_RANGE
    _IP: (
        *(1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 15, 18, 19, 20, 21, 22, 23, 24, 25, 26, 33, 34, 49),
        51,
    ),
    # NODELAY, CORK, KEEPIDLE, KEEPINTVL, KEEPCNT, SYNCNT, LINGER2, DEFER_ACCEPT, CONGESTION,
    # THIN_LINEAR_TIMEOUTS, USER_TIMEOUT, FASTOPEN, NOTSENT_LOWAT, SAVE_SYN, FASTOPEN_CONNECT,
    # FASTOPEN_NO_COOKIE, INQ, TX_DELAY
    _TCP: (1, 3, 4, 5, 6, 7, 8, 9, 13, 16, 18, 23, 25, 27, 30, 34, 36, 37),
    # ENCAP, NO_CHECK6_TX, NO_CHECK6_RX, SEGMENT, GRO
    _UDP: (100, 101, 102, 103, 104),
    # UNICAST_HOPS, MULTICAST_HOPS, MULTICAST_LOOP, MTU_DISCOVER, RECVERR, V6ONLY, MULTICAST_ALL,
    # RECVERR_RFC4884, FLOWINFO_SEND, RECVPKTINFO, RECVHOPLIMIT, RECVHOPOPTS, RECVRTHDR,
    # RECVDSTOPTS, RECVPATHMTU, DONTFRAG, RECVTCLASS, TCLASS, AUTOFLOWLABEL, ADDR_PREFERENCES,
    # MINHOPCOUNT, RECVORIGDSTADDR, TRANSPARENT, RECVFRAGSIZE, FREEBIND
    _IPV6: (
        *(16, 18, 19, 23, 25, 26, 29, 31, 33, 49, 51, 53, 56, 58, 60, 62, 66, 67, 70, 72, 73, 74),
        *(75, 77, 78),
    ),
    # PKTINFO, BROADCAST_ERROR, NO_ENOBUFS, CAP_ACK, EXT_ACK, GET_STRICT_CHK
    _NETLINK: (3, 4, 5, 10, 11, 12),
}

OPTIONS = tuple((level, name) for level, names in _NAMES.items() for name in names)

# The capability that a process needs to set them: a checkpoint must not get around that.
_NEEDS = {
    (_SOCKET, 12): "CAP_NET_ADMIN",  # a priority above 6
    (_SOCKET, 36): "CAP_NET_ADMIN",
    (_SOCKET, 46): "CAP_NET_ADMIN",
    (_IP, 19): "CAP_NET_ADMIN",
    (_IPV6, 75): "CAP_NET_ADMIN",
}
CONGESTION = (_TCP, 13)
MULTICAST = frozenset({(_IP, 33), (_IP, 34), (_IP, 49), (_IPV6, 18), (_IPV6, 19), (_IPV6, 29)})
_PRIORITY = (_SOCKET, 12)
_FREE_PRIORITIES = 6


def needs(level: int, name: int, value: str) -> str | None:
    """The capability needed to set an option to *value* (hexadecimal digits), if any.

    ImageError for an option that no checkpoint has.
    """
    option = (level, name)
    if option not in OPTIONS:
        raise ImageError(f"socket option {level}/{name} is none that a checkpoint carries")
    try:
        data = bytes.fromhex(value)
    except ValueError:
        raise ImageError(f"socket option {level}/{name}: {value!r} is no value") from None
    if option == _PRIORITY and int.from_bytes(data, "little") <= _FREE_PRIORITIES:
        return None
    return _NEEDS.get(option)
