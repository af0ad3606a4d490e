"""A container's resource usage from its cgroup, in the messages that containerd's clients expect.

A file that a kernel does not have leaves its fields out. Spec: linux Documentation/admin-guide/
cgroup-v1/ and cgroup-v2.rst; containerd/cgroups cgroup1/ and cgroup2/stats/metrics.proto.
"""

from __future__ import annotations

import os
from contextlib import suppress

from grit_runtime.errors import NotFoundError
from grit_runtime.host import cgroup
from grit_runtime.proto import cgroup1_pb2 as v1
from grit_runtime.proto import cgroup2_pb2 as v2

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from google.protobuf.message import Message

NO_LIMIT = (1 << 64) - 1

_TICK_NS = 10**9 // os.sysconf("SC_CLK_TCK")

# Lines of a v1 file that have another name in the message.
_V1_MEMORY = {
    "pgpgin": "pg_pg_in",
    "pgpgout": "pg_pg_out",
    "pgfault": "pg_fault",
    "pgmajfault": "pg_maj_fault",
    "hierarchical_memsw_limit": "hierarchical_swap_limit",
}
_V1_MEMORY |= {
    f"total_{name}": f"total_{field}" for name, field in _V1_MEMORY.items() if name[0] == "p"
}
_V1_CPU = {"nr_periods": "periods", "nr_throttled": "throttled_periods"}
_V1_ENTRIES = {"usage": "", "swap": "memsw.", "kernel": "kmem.", "kernel_tcp": "kmem.tcp."}


def read(cgroups_path: str) -> v1.Metrics | v2.Metrics:
    """The statistics of a cgroup; NotFoundError once it is gone."""
    directories = cgroup.directories(cgroups_path)
    if not directories:
        raise NotFoundError(f"cgroup {cgroups_path}: not found")
    files = _Files(directories)
    return _v2(files) if cgroup.is_unified() else _v1(files)


def _v1(files: _Files) -> v1.Metrics:
    metrics = v1.Metrics()
    usage = metrics.cpu.usage
    usage.total = files.number("cpuacct.usage")
    usage.per_cpu.extend(int(word) for word in files.text("cpuacct.usage_percpu").split())
    ticks = files.table("cpuacct.stat")
    usage.user, usage.kernel = (ticks.get(name, 0) * _TICK_NS for name in ("user", "system"))
    _fill(metrics.cpu.throttling, files.table("cpu.stat"), _V1_CPU)
    _fill(metrics.memory, files.table("memory.stat"), _V1_MEMORY)
    for field, part in _V1_ENTRIES.items():
        entry = getattr(metrics.memory, field)
        entry.limit = files.number(f"memory.{part}limit_in_bytes")
        entry.usage = files.number(f"memory.{part}usage_in_bytes")
        entry.max = files.number(f"memory.{part}max_usage_in_bytes")
        entry.failcnt = files.number(f"memory.{part}failcnt")
    _fill(metrics.memory_oom_control, files.table("memory.oom_control"), {})
    metrics.pids.current = files.number("pids.current")
    metrics.pids.limit = files.number("pids.max") % NO_LIMIT  # here, 0 is none
    for field in ("io_service_bytes_recursive", "io_serviced_recursive"):
        for line in files.text(f"blkio.throttle.{field}").splitlines():
            device, _, rest = line.partition(" ")
            if ":" in device:  # the last line is a total
                major, minor = map(int, device.split(":"))
                op, value = rest.split()
                getattr(metrics.blkio, field).add(op=op, major=major, minor=minor, value=int(value))
    return metrics


def _v2(files: _Files) -> v2.Metrics:
    metrics = v2.Metrics()
    _fill(metrics.cpu, files.table("cpu.stat"), {})
    memory = metrics.memory
    _fill(memory, files.table("memory.stat"), {})
    memory.usage = files.number("memory.current")
    memory.usage_limit = files.number("memory.max")
    memory.max_usage = files.number("memory.peak")
    memory.swap_usage = files.number("memory.swap.current")
    memory.swap_limit = files.number("memory.swap.max")
    memory.swap_max_usage = files.number("memory.swap.peak")
    _fill(metrics.memory_events, files.table("memory.events"), {})
    metrics.pids.current = files.number("pids.current")
    metrics.pids.limit = files.number("pids.max")
    for line in files.text("io.stat").splitlines():
        device, *pairs = line.split()
        major, minor = map(int, device.split(":"))
        entry = metrics.io.usage.add(major=major, minor=minor)
        _fill(entry, {key: int(value) for key, _, value in (p.partition("=") for p in pairs)}, {})
    for message, name in ((metrics.cpu, "cpu"), (memory, "memory"), (metrics.io, "io")):
        for line in files.text(f"{name}.pressure").splitlines():
            kind, *pairs = line.split()
            stalled = getattr(message.psi, kind)
            for key, _, value in (pair.partition("=") for pair in pairs):
                setattr(stalled, key, int(value) if key == "total" else float(value))
    return metrics


class _Files:
    """The files of one cgroup, whose controllers may be in several hierarchies; absent is empty."""

    def __init__(self, directories: list[str]) -> None:
        self._directories = directories

    def text(self, name: str) -> str:
        for directory in self._directories:
            with suppress(OSError), open(f"{directory}/{name}", encoding="ascii") as file:
                return file.read()
        return ""

    def number(self, name: str) -> int:
        text = self.text(name).strip()
        return NO_LIMIT if text == "max" else int(text or 0)

    def table(self, name: str) -> dict[str, int]:
        """A file of names and numbers, one pair a line."""
        lines = (line.split() for line in self.text(name).splitlines())
        return {words[0]: int(words[1]) for words in lines if len(words) == 2}


def _fill(message: Message, values: Mapping[str, int], names: Mapping[str, str]) -> None:
    """Set the fields of the message from *values*; *names* has those with another name."""
    for name, value in values.items():
        field = message.DESCRIPTOR.fields_by_name.get(names.get(name, name))
        if field is not None and field.message_type is None:
            setattr(message, field.name, value)
