"""Two machines on a link of 1 Gbit/s: network namespaces, a veth pair, a token bucket at both ends.

Delay cannot be added: that needs the kernel's netem.
"""

from __future__ import annotations

import subprocess
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MIB_PER_S = 1e9 / 8 / (1 << 20)
NEAR, FAR = "10.98.0.1", "10.98.0.2"


class Link(NamedTuple):
    """The words that run a command at either end."""

    near: tuple[str, ...]
    far: tuple[str, ...]


@contextmanager
def joined() -> Iterator[Link]:
    with ExitStack() as ends:
        near, far = (ends.enter_context(_namespace()) for _ in range(2))
        link = Link(*(("nsenter", f"--net=/proc/{pid}/ns/net") for pid in (near, far)))
        add = f"ip link add eth0 type veth peer name eth0 netns {far}"
        for enter, address, script in ((link.near, NEAR, add), (link.far, FAR, ":")):
            subprocess.run([*enter, "sh", "-ec", f"{script}\n{_SETUP}", "sh", address], check=True)
        yield link


_SETUP = """
ip link set lo up
ip addr add "$1/24" dev eth0
ip link set eth0 up
tc qdisc add dev eth0 root tbf rate 1gbit burst 256kb latency 50ms
"""


@contextmanager
def _namespace() -> Iterator[int]:
    """The pid of a process in a network of its own, which ends with its standard input."""
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "echo ready; exec cat"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.stdin.close()
