"""The TCP connections of processes, as /proc shows them.

Source: linux Documentation/networking/proc_net_tcp.rst, net/ipv4/tcp_ipv4.c get_tcp4_sock.
"""

from __future__ import annotations

import ipaddress
import struct

from grit_runtime.host.process import open_links, proc_text
from grit_runtime.model.connections import Connection, Endpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_LISTEN, _CLOSE, _TIME_WAIT = "0A", "07", "06"


def connections(pids: Iterable[int]) -> list[Connection]:
    """Those of *pids*, which share a network namespace; one that several processes hold once."""
    owners = {
        int(link[len("socket:[") : -1]): pid
        for pid in sorted(pids, reverse=True)
        for link in open_links(pid)
        if link.startswith("socket:[")
    }
    found = []
    for pid in sorted(set(owners.values()))[:1]:
        for table in ("net/tcp", "net/tcp6"):
            for line in proc_text(pid, table).splitlines()[1:]:
                words = line.split()
                owner = owners.get(int(words[9]))
                if owner is not None and words[3] not in (_LISTEN, _CLOSE, _TIME_WAIT):
                    found.append(Connection(owner, _endpoint(words[1]), _endpoint(words[2])))
    return found


def _endpoint(text: str) -> Endpoint:
    """``0100007F:1F90``: the address in words of the machine's byte order, and the port."""
    address, port = text.split(":")
    words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    return Endpoint.of(ipaddress.ip_address(struct.pack(f"={len(words)}I", *words)), int(port, 16))
