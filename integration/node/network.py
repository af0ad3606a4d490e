"""The network that joins throwaway nodes: a router with a bridge in a network namespace of its own.

The namespace has no name, only a process, and its links end in other namespaces; so all of it goes
when the processes do, however they end, and the machine's own network is never touched.
"""

from __future__ import annotations

import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Self

from pyroute2 import IPRoute

from grit_runtime.host import linux

ROUTER = "10.99.0.254"

# Routes between whatever is connected, until standard input ends.
ROUTER_SCRIPT = "echo 1 >/proc/sys/net/ipv4/ip_forward; echo ready; exec cat"


class Connection(NamedTuple):
    """What a node got on a network."""

    address: str
    pod_subnet: str


class Network:
    """A router that nodes are connected to; their pods reach each other through it.

    *namespace* is its network namespace.
    """

    def __enter__(self) -> Self:
        self._router = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", ROUTER_SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._router.stdout is not None
        self._router.stdout.readline()
        self._nodes = 0
        self.namespace = f"/proc/{self._router.pid}/ns/net"
        with IPRoute(netns=self.namespace) as links:
            # An address given, not taken from the first port, does not change with the ports.
            links.link("add", ifname="nodes", kind="bridge", address="02:00:00:00:00:01")
            self._bridge = links.link_lookup(ifname="nodes")[0]
            links.addr("add", index=self._bridge, address=ROUTER, prefixlen=24)
            links.link("set", index=self._bridge, state="up")
        return self

    def __exit__(self, *_: object) -> None:
        with self._router:
            assert self._router.stdin is not None
            self._router.stdin.close()

    def listening(self) -> socket.socket:
        """A socket of this machine's that all nodes reach, at the router's address."""

        def listen() -> socket.socket:
            linux.setns(self.namespace)
            return socket.create_server((ROUTER, 0))

        with ThreadPoolExecutor(1) as thread:  # the namespace is that of a thread
            return thread.submit(listen).result()

    def connect(self, pid: int) -> Connection:
        """Give the network namespace of process *pid* an eth0 on this network."""
        self._nodes += 1
        port = f"node{self._nodes}"
        connection = Connection(f"10.99.0.{self._nodes}", f"10.244.{self._nodes}.0/24")
        with IPRoute(netns=self.namespace) as links:
            links.link("add", ifname=port, kind="veth", peer={"ifname": "eth0", "net_ns_pid": pid})
            index = links.link_lookup(ifname=port)[0]
            links.link("set", index=index, master=self._bridge, state="up")
        with IPRoute(netns=f"/proc/{pid}/ns/net") as links:
            index = links.link_lookup(ifname="eth0")[0]
            links.addr("add", index=index, address=connection.address, prefixlen=24)
            links.link("set", index=index, state="up")
            links.route("add", dst="default", gateway=ROUTER)
        with IPRoute(netns=self.namespace) as links:
            links.route("add", dst=connection.pod_subnet, gateway=connection.address)
        return connection
