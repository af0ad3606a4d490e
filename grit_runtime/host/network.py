"""Addresses of a pod's network namespace."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress

from grit_runtime.host import namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def missing_addresses(namespace: Sequence[str], addresses: Sequence[str]) -> list[str]:
    """Those of *addresses* that nothing can be bound to in the namespace, our own if none."""
    if not addresses:
        return []
    found: list[str] = namespaces.inside(
        namespace, lambda: [address for address in addresses if not _can_bind(address)]
    )
    return found


def add_to_loopback(namespace: str, addresses: Sequence[str]) -> None:
    """Give the namespace's loopback interface *addresses*, each alone in its network."""
    _change("add", namespace, addresses)


def remove_from_loopback(namespace: str, addresses: Sequence[str]) -> None:
    """Take back what `add_to_loopback` gave, or had only begun to give."""
    with suppress(FileNotFoundError):  # the pod's network went first
        _change("delete", namespace, addresses)


def _change(verb: str, namespace: str, addresses: Sequence[str]) -> None:
    from pyroute2 import NetlinkError, NetNS  # noqa: PLC0415  takes a tenth of a second

    with NetNS(namespace, flags=0) as links:
        [loopback] = links.link_lookup(ifname="lo")
        for address in addresses:
            prefix = 128 if ":" in address else 32
            try:
                links.addr(verb, index=loopback, address=address, prefixlen=prefix)
            except NetlinkError as error:
                if error.code not in (errno.EEXIST, errno.EADDRNOTAVAIL):
                    raise OSError(error.code, f"{verb} {address}", namespace) from None


def _can_bind(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return False
            raise
    return True
