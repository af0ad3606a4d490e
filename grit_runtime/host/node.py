"""Facts about this node that decide whether a process can continue here."""

import os

from grit_runtime.host import criu
from grit_runtime.model.compatibility import instruction_sets
from grit_runtime.model.manifest import Node


def facts(
    criu_version: criu.Version, *, runc: str = "", containerd: str = "", driver: str = ""
) -> Node:
    """This node's kernel and CPU, and the versions of its programs, as far as the caller knows."""
    uname = os.uname()
    return Node(
        kernel=uname.release,
        machine=uname.machine,
        cpu_features=instruction_sets(_cpu_flags()),
        criu=".".join(map(str, criu_version)),
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
