"""Facts about this node that decide whether a process can go on on it."""

import os

from grit_runtime.host import criu
from grit_runtime.model.compatibility import instruction_sets
from grit_runtime.model.manifest import Node


def facts(token: str, *, runc: str = "", containerd: str = "", driver: str = "") -> Node:
    """Kernel, CPU and CRIU of this node; the other versions are what the caller knows of them."""
    uname = os.uname()
    return Node(
        kernel=uname.release,
        machine=uname.machine,
        cpu_features=instruction_sets(_cpu_flags()),
        criu=".".join(map(str, criu.version(token))),
        runc=runc,
        containerd=containerd,
        driver=driver,
    )


def _cpu_flags() -> list[str]:
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith(("flags", "Features")):
                return line.partition(":")[2].split()
    return []
