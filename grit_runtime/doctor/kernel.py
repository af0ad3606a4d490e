"""The kernel, by doing once what a checkpoint and a restore do to a process; and its settings."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import tempfile
from contextlib import contextmanager

from grit_runtime import errors
from grit_runtime.doctor.finding import Finding, broken, ok, warning
from grit_runtime.errors import CommandError, one_line
from grit_runtime.host import cgroup, huge_pages, id_maps, linux, process
from grit_runtime.model import sizes
from grit_runtime.model.memory_range import MemoryFile, MemoryRange
from grit_runtime.tasks import memory_copy, ptrace_agent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from grit_runtime.doctor.node import Node

_ADJTIMEX_BYTES = 512  # more than any architecture's struct timex
_NOT_SYNCHRONIZED = 5  # adjtimex(2) TIME_ERROR
_LEAST_BYTES = 512 << 20
_CLONE_NEWNS = 0x20000
_VOLUMES = "/var/lib"  # kubelet's, and the layers of containerd's images


def kernel(_: Node) -> Finding:
    """Hold a process of ours by ptrace, and read what a checkpoint reads of it."""
    release = os.uname().release
    page = mmap.mmap(-1, mmap.PAGESIZE)
    place = MemoryRange(address := ctypes.addressof(ctypes.c_char.from_buffer(page)), address + 1)
    done = []
    with _victim() as pid, tempfile.TemporaryDirectory() as directory:
        memory = [MemoryFile(pid, f"{directory}/memory", (place,))]
        for name, work in (
            ("pidfd_getfd", lambda: os.close(linux.copy_descriptor(pid, 0))),
            ("kcmp", lambda: linux.differ(pid, os.getpid(), linux.KCMP_FILE, (0, 0))),
            ("ptrace", lambda: _held(pid)),
            ("process_vm_readv", lambda: memory_copy.save(memory, to_disk=False)),
            ("process_vm_writev", lambda: memory_copy.fill(memory)),
        ):
            try:
                work()
            except (CommandError, OSError) as error:
                return broken(
                    f"kernel {release}: {name} is refused: {one_line(error)}",
                    "run grit as root of the node, with a kernel that has CHECKPOINT_RESTORE and "
                    "CROSS_MEMORY_ATTACH, and kernel.yama.ptrace_scope below 3",
                    errors.SYSTEM_CALL,
                )
            done.append(name)
    return ok(f"kernel {release}: {', '.join(done)} work")


def cgroups(_: Node) -> Finding:
    """The version, and whether containers can be frozen."""
    if cgroup.is_unified():
        if os.path.exists(f"/sys/fs/cgroup{cgroup.of(os.getpid())}/cgroup.procs"):
            return ok("cgroup v2")
        return broken(
            "cgroup v2, and this process's cgroup is not below /sys/fs/cgroup",
            "run grit in the cgroup namespace of the node",
            errors.NotFoundError.reason,
        )
    if "freezer" in cgroup.hierarchies():
        return ok("cgroup v1, with the freezer")
    return broken(
        "cgroup v1 without the freezer below /sys/fs/cgroup",
        "mount the freezer, or boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1)",
        errors.NotFoundError.reason,
    )


def idmapped_mounts(_: Node) -> Finding:
    """Mount a directory with other owners, as the volumes of a pod with hostUsers: false are."""
    try:
        with process.beside(_mount_mapped) as hear:
            hear()
    except CommandError as error:
        return warning(
            f"{_VOLUMES} cannot be mounted with other owners: {error}",
            f"pods with hostUsers: false need it: have {_VOLUMES} on ext4, xfs or btrfs, with a "
            "kernel of 5.19 or newer",
        )
    return ok(f"{_VOLUMES} can be mounted with other owners")


def transparent_huge_pages(node: Node) -> Finding:
    """Without them GPU memory moves at two thirds of the speed."""
    chosen = huge_pages.chosen()
    if chosen is None:
        return warning(
            "the kernel has no transparent huge pages", "GPU memory moves faster with them"
        )
    if chosen == "always" or node.config.huge_pages:
        return ok(f"{chosen}; always while GPU memory is moved")
    return ok(f"{chosen}, also while GPU memory is moved (huge_pages = false)")


def memory(node: Node) -> Finding:
    """The driver stages GPU memory in host memory."""
    available_bytes = _available_bytes()
    evidence = f"{sizes.shown(available_bytes)} available"
    if node.gpu_bytes:
        evidence += f", and the cards have {sizes.shown(node.gpu_bytes)}"
    if available_bytes < max(node.gpu_bytes, _LEAST_BYTES):
        return warning(
            evidence, "free some: GPU memory that is moved stays in host memory meanwhile"
        )
    return ok(evidence)


def clock(_: Node) -> Finding:
    """Certificates, tokens and records go by it."""
    state = linux.result("adjtimex", "clock", ctypes.create_string_buffer(_ADJTIMEX_BYTES))
    if state == _NOT_SYNCHRONIZED:
        return warning(
            "the kernel's clock is synchronized by nothing",
            "run chrony or systemd-timesyncd: certificates and tokens of other nodes go by time",
        )
    return ok("the kernel's clock is synchronized")


@contextmanager
def _victim() -> Iterator[int]:
    """A process of ours that waits."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            linux.die_with_parent(parent)
            signal.pause()
        finally:
            os._exit(0)
    try:
        yield pid
    finally:
        process.kill(pid)


def _held(pid: int) -> None:
    with ptrace_agent.held([pid], process.new_token()):
        pass


def _mount_mapped() -> None:
    """In a mount namespace that ends with this process."""
    linux.call("unshare", _VOLUMES, _CLONE_NEWNS)
    linux.call("mount", "/", b"none", b"/", None, linux.MS_REC | linux.MS_PRIVATE, None)
    maps = id_maps.decode("0:100000:65536", "0:100000:65536")
    with id_maps.user_namespace(maps) as userns_fd:
        id_maps.clone(_VOLUMES, _VOLUMES, userns_fd)


def _available_bytes() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return 0
