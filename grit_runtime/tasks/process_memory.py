"""What the kernel shows of the memory of processes, which may be stopped or frozen."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import re
import struct
from mmap import PAGESIZE

from grit_runtime.host import procfs
from grit_runtime.model.memory_range import MemoryRange

_PAGEMAP_SCAN = 0xC0606610
_PAGE_IS_GUARD = 1 << 8
_SEALED = " sl "
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (?:.*\n)*?VmFlags:(.*)$", re.MULTILINE)
_ADDRESS_LIMIT = (1 << 47) - PAGESIZE
_REGIONS = 1024


def anonymous(pid: int) -> list[MemoryRange]:
    """The private anonymous mappings of a process that it may write to. Spec: proc_pid_maps(5)."""
    ranges = []
    for line in procfs.text(pid, "maps").splitlines():
        place, flags, _, _, inode, *name = line.split(None, 5)
        if flags.startswith("rw") and flags.endswith("p") and inode == "0" and not name:
            ranges.append(MemoryRange(*(int(number, 16) for number in place.split("-"))))
    return ranges


def guards(pid: int) -> list[MemoryRange]:
    """The guard pages of a process (MADV_GUARD_INSTALL), if the kernel shows them (from 6.15 on).

    Spec: linux Documentation/admin-guide/mm/pagemap.rst PAGEMAP_SCAN; struct pm_scan_arg and
    page_region of include/uapi/linux/fs.h.
    """
    ranges: list[MemoryRange] = []
    regions = (ctypes.c_uint64 * 3 * _REGIONS)()
    start = 0
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        while start < _ADDRESS_LIMIT:
            request = (start, _ADDRESS_LIMIT, 0, ctypes.addressof(regions), _REGIONS, 0)
            masks = (0, _PAGE_IS_GUARD, 0, _PAGE_IS_GUARD)
            argument = bytearray(struct.pack("12Q", 96, 0, *request, *masks))
            try:
                count = fcntl.ioctl(file, _PAGEMAP_SCAN, argument, True)  # noqa: FBT003
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOTTY):  # an older kernel
                    return []
                raise
            ranges += [MemoryRange(regions[at][0], regions[at][1]) for at in range(count)]
            (start,) = struct.unpack_from("Q", argument, 32)
    return ranges


def seals(pid: int) -> list[MemoryRange]:
    """The mappings of a process that are sealed by mseal. The kernel walks all its memory for it.

    Spec: linux Documentation/userspace-api/mseal.rst, proc_pid_smaps(5) VmFlags.
    """
    text = procfs.text(pid, "smaps")
    if _SEALED not in text:
        return []
    return [
        MemoryRange(int(start, 16), int(end, 16))
        for start, end, flags in _MAPPING.findall(text)
        if _SEALED in flags
    ]
