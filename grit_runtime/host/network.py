"""Addresses of a pod's network namespace."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from grit_runtime.host import namespaces

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_DONE_ALREADY = (errno.EEXIST, errno.ENOENT, errno.EADDRNOTAVAIL)
_TC_H_ROOT = 0xFFFFFFFF  # linux include/uapi/linux/pkt_sched.h
_BEFORE_ALL_ROUTES = 1  # the rule of priority 0 is for what stays in the namespace


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
    _change("delete", namespace, addresses)


def silence(namespace: str) -> None:
    """Let nothing leave the namespace, so that peers do not hear of the end of its sockets."""
    _silence("add", namespace)


def let_speak(namespace: str) -> None:
    """Take back what `silence` did, or had only begun to do."""
    _silence("delete", namespace)


def hold_loopback(namespace: str) -> None:
    """Let nothing pass between sockets of the namespace; TCP sends it again later."""
    _hold("add", namespace)


def let_loopback_pass(namespace: str) -> None:
    """Take back what `hold_loopback` did, or had only begun to do."""
    _hold("delete", namespace)


def _hold(verb: str, namespace: str) -> None:
    index = socket.if_nametoindex("lo")
    kind = {"kind": "blackhole"} if verb == "add" else {}
    _request(namespace, "tc", verb, [{"index": index, "parent": _TC_H_ROOT, **kind}])


def _silence(verb: str, namespace: str) -> None:
    rule = {"priority": _BEFORE_ALL_ROUTES, "action": "blackhole"}
    families = (socket.AF_INET, socket.AF_INET6)
    _request(namespace, "rule", verb, [{**rule, "family": family} for family in families])


def _change(verb: str, namespace: str, addresses: Sequence[str]) -> None:
    index = socket.if_nametoindex("lo")  # the same in every namespace: the first interface
    prefixes = [(address, 128 if ":" in address else 32) for address in addresses]
    wanted = [{"index": index, "address": a, "prefixlen": length} for a, length in prefixes]
    _request(namespace, "addr", verb, wanted)


def _request(namespace: str, what: str, verb: str, wanted: Sequence[dict[str, Any]]) -> None:
    """Make netlink requests of one kind in the namespace; what is done already is no error."""
    if verb == "delete" and not os.path.exists(namespace):  # the pod's network went first
        return

    def work() -> None:
        from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415  takes a tenth of a second

        with IPRoute() as links:
            for fields in wanted:
                try:
                    getattr(links, what)(verb, **fields)
                except NetlinkError as error:
                    if error.code not in _DONE_ALREADY:
                        raise

    namespaces.inside([namespace], work)


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
