"""Changing a pod's network namespace: addresses, and what packets may pass."""

from __future__ import annotations

import errno
import os
from typing import Any

from grit_runtime.host import namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_DONE_ALREADY = (errno.EEXIST, errno.ENOENT, errno.EADDRNOTAVAIL)
_TC_H_ROOT = 0xFFFFFFFF  # linux include/uapi/linux/pkt_sched.h
_BEFORE_ALL_ROUTES = 1  # the rule of priority 0 is for what stays in the namespace


def load() -> None:
    """Load now what a change needs, because packages may be replaced while this process waits."""
    import pyroute2  # noqa: F401


def missing_addresses(namespace: Sequence[str], addresses: Sequence[str]) -> list[str]:
    """Those of *addresses* that nothing can be bound to in the namespace.

    *namespace* is a list of one path; an empty list means this process's own.
    """
    if not addresses:
        return []
    missing: list[str] = namespaces.inside(
        namespace, lambda: [address for address in addresses if not _can_bind(address)]
    )
    return missing


def add_to_loopback(namespace: str, addresses: Sequence[str]) -> None:
    """Give the namespace's loopback interface *addresses*, each with a full-length prefix."""
    _change("add", namespace, addresses)


def remove_from_loopback(namespace: str, addresses: Sequence[str]) -> None:
    """Undo `add_to_loopback`, also if it was only begun."""
    _change("delete", namespace, addresses)


def block_egress(namespace: str) -> None:
    """Let nothing leave the namespace, so that peers do not see its sockets close."""
    _silence("add", namespace)


def unblock_egress(namespace: str) -> None:
    """Undo `block_egress`, also if it was only begun."""
    _silence("delete", namespace)


def hold_loopback(namespace: str) -> None:
    """Let nothing pass between sockets of the namespace; TCP retransmits later."""
    _hold("add", namespace)


def let_loopback_pass(namespace: str) -> None:
    """Undo `hold_loopback`, also if it was only begun."""
    _hold("delete", namespace)


def _hold(verb: str, namespace: str) -> None:
    index = _loopback()
    kind = {"kind": "blackhole"} if verb == "add" else {}
    _request(namespace, "tc", verb, [{"index": index, "parent": _TC_H_ROOT, **kind}])


def _silence(verb: str, namespace: str) -> None:
    rule = {"priority": _BEFORE_ALL_ROUTES, "action": "blackhole"}
    from socket import AF_INET, AF_INET6

    families = (AF_INET, AF_INET6)
    _request(namespace, "rule", verb, [{**rule, "family": family} for family in families])


def _change(verb: str, namespace: str, addresses: Sequence[str]) -> None:
    index = _loopback()
    prefixes = [(address, 128 if ":" in address else 32) for address in addresses]
    requests = [{"index": index, "address": a, "prefixlen": length} for a, length in prefixes]
    _request(namespace, "addr", verb, requests)


def _request(namespace: str, what: str, verb: str, requests: Sequence[dict[str, Any]]) -> None:
    """Make netlink requests of one kind in the namespace; a change made already is no error."""
    if verb == "delete" and not os.path.exists(namespace):  # the pod's network went first
        return

    def work() -> None:
        from pyroute2 import IPRoute, NetlinkError  # takes a tenth of a second

        with IPRoute() as links:
            for fields in requests:
                try:
                    getattr(links, what)(verb, **fields)
                except NetlinkError as error:
                    if error.code not in _DONE_ALREADY:
                        raise

    namespaces.inside([namespace], work)


def _loopback() -> int:
    """Index of the loopback interface; it is the first, so the same in every namespace."""
    from socket import if_nametoindex  # most restores need no sockets

    return if_nametoindex("lo")


def _can_bind(address: str) -> bool:
    import socket

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                return False
            raise
    return True
