"""What the kernel shows of the memory of processes, which may be stopped or frozen."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import re
import struct
from mmap import PAGESIZE

from grit_runtime.host import procfs
from grit_runtime.model.memory_range import MemoryRange, merged

_PAGEMAP_SCAN = 0xC0606610
_PAGE_IS_GUARD = 1 << 8
_SEALED = " sl "
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (?:.*\n)*?VmFlags:(.*)$", re.MULTILINE)
_HEAP = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) rw.p 0+ 00:00 0 *(?:|\[heap\]|\[anon:.*)\n"
    r"(?:[A-Z].*\n)*?VmFlags:(.*)$",
    re.MULTILINE,
)
_HEAP_FLAGS = frozenset(
    (*("rd", "wr", "ex", "mr", "mw", "me"), *("ac", "nr", "sd", "hg", "nh", "mg", "dd", "wf"))
)
_AIO_RING = " /[aio]"
_ENTRY_BYTES = 8  # of pagemap
_READ_BYTES = 8 << 20
# The highest byte of the entry of a page that is present, and that no other mapping has.
_OWN_PAGES = re.compile(rb"\x81+")
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


def heaps(pid: int, min_bytes: int) -> list[MemoryRange]:
    """Mappings of a process that can be emptied, and filled again, without a trace of it.

    Private anonymous ones that it may write to, of at least *min_bytes*; none of a process for
    which the kernel itself writes to memory (io_setup), nor what is kept from forked children, as
    memory that a device uses is. Spec: proc_pid_smaps(5) VmFlags.
    """
    text = procfs.text(pid, "smaps")
    if _AIO_RING in text:
        return []
    found = [
        MemoryRange(int(start, 16), int(end, 16))
        for start, end, flags in _HEAP.findall(text)
        if _HEAP_FLAGS.issuperset(flags.split())
    ]
    return [one for one in found if one.size_bytes >= min_bytes]


def own_pages(pid: int, there: MemoryRange) -> list[MemoryRange]:
    """Where a process has pages, in a private mapping, that it shares with no other mapping.

    Not those that are swapped out. Spec: linux Documentation/admin-guide/mm/pagemap.rst, bits 63,
    61 and 56.
    """
    ranges: list[MemoryRange] = []
    address = there.start
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        file.seek(address // PAGESIZE * _ENTRY_BYTES)
        while address < there.end:
            wanted_bytes = (there.end - address) // PAGESIZE * _ENTRY_BYTES
            highest = file.read(min(_READ_BYTES, wanted_bytes))[7::_ENTRY_BYTES]
            if not highest:  # the process has ended
                break
            ranges += [
                MemoryRange(address + own.start() * PAGESIZE, address + own.end() * PAGESIZE)
                for own in _OWN_PAGES.finditer(highest)
            ]
            address += len(highest) * PAGESIZE
    return merged(ranges)


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
