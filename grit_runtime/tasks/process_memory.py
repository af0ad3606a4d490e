"""Copying memory of processes to files and back, on all usable cores.

The processes may be stopped or frozen.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import struct
from bisect import bisect
from contextlib import ExitStack
from itertools import groupby, zip_longest
from mmap import PAGESIZE, mmap
from threading import local

from grit_runtime.errors import CommandError
from grit_runtime.files import digest
from grit_runtime.host import linux, procfs
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model.memory_range import MemoryFile, MemoryRange
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Copy = Callable[["_Chunk", mmap], None]

# Between two chunks a thread needs the interpreter's lock: with smaller chunks 32 cores wait for it
# most of the time. Much larger chunks are in no cache any more when they are hashed.
_CHUNK_BYTES = 4 << 20

_PAGEMAP_SCAN = 0xC0606610
_PAGE_IS_GUARD = 1 << 8
_SEALED = " sl "
_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (?:.*\n)*?VmFlags:(.*)$", re.MULTILINE)
_ADDRESS_LIMIT = (1 << 47) - PAGESIZE
_REGIONS = 1024

_libc = ctypes.CDLL(None, use_errno=True)
for _name in ("process_vm_readv", "process_vm_writev"):
    _libc[_name].restype = ctypes.c_ssize_t


class _Chunk(NamedTuple):
    """What is copied in one go."""

    pid: int
    address: int
    size_bytes: int
    fd: int
    offset: int


class _Piece(NamedTuple):
    """What is hashed in one go, and the file that it is of."""

    number: int
    chunks: list[_Chunk]


class _IoVector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("size_bytes", ctypes.c_size_t))


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


def save(saved: Sequence[MemoryFile], *, to_disk: bool) -> list[str]:
    """Write memory of processes into new files; the digests of what was written.

    Blocks until that is done, or OSError. *to_disk* starts writing to the disk at once, for a
    caller that will sync.
    """
    copy = _save_to_disk if to_disk else _save
    return _copy_all(saved, os.O_WRONLY | os.O_CREAT | os.O_EXCL, copy)


def fill(saved: Sequence[MemoryFile]) -> None:
    """Fill memory of processes from files. Blocks until that is done, or OSError."""
    _copy_all(saved, os.O_RDONLY, _fill, hashed=False)


def fill_and_hash(saved: Sequence[MemoryFile]) -> list[str]:
    """As `fill`; returns the digests of what the processes were given."""
    return _copy_all(saved, os.O_RDONLY, _fill)


def _copy_all(
    saved: Sequence[MemoryFile], flags: int, copy: Copy, *, hashed: bool = True
) -> list[str]:
    from concurrent.futures import ThreadPoolExecutor  # few processes need it

    mine = local()

    def make_buffer() -> None:
        mine.buffer = mmap(-1, _CHUNK_BYTES)

    def work(piece: _Piece) -> bytes:
        sha256 = hashlib.sha256()
        with memoryview(mine.buffer) as view:
            for chunk in piece.chunks:
                copy(chunk, mine.buffer)
                if hashed:
                    sha256.update(view[: chunk.size_bytes])
        return sha256.digest()

    digests: list[list[bytes]] = [[] for _ in saved]
    with ExitStack() as stack:
        files = []
        for number, one in enumerate(saved):
            fd = stack.enter_context(closing_fd(os.open(one.path, flags | os.O_CLOEXEC, 0o600)))
            files.append(_pieces(number, one, fd))
        # Alternating between files: the kernel writes to a file from one thread at a time.
        pieces = [piece for turn in zip_longest(*files) for piece in turn if piece]
        workers = len(os.sched_getaffinity(0))
        pool = stack.enter_context(ThreadPoolExecutor(workers, initializer=make_buffer))
        for piece, done in zip(pieces, pool.map(work, pieces), strict=True):
            digests[piece.number].append(done)
    return [digest.joined(one.size_bytes, d) for one, d in zip(saved, digests, strict=True)]


def _pieces(number: int, saved: MemoryFile, fd: int) -> list[_Piece]:
    starts = [piece.offset for piece in digest.pieces(saved.size_bytes)]
    of_pieces = groupby(_chunks(saved, fd), key=lambda chunk: bisect(starts, chunk.offset))
    return [_Piece(number, list(chunks)) for _, chunks in of_pieces]


def _chunks(saved: MemoryFile, fd: int) -> Iterator[_Chunk]:
    offset = 0
    for there in saved.ranges:
        address = there.start
        while address < there.end:
            in_piece = digest.PIECE_BYTES - offset % digest.PIECE_BYTES
            size_bytes = min(_CHUNK_BYTES, in_piece, there.end - address)
            yield _Chunk(saved.pid, address, size_bytes, fd, offset)
            address += size_bytes
            offset += size_bytes


def _save(chunk: _Chunk, buffer: mmap) -> None:
    _transfer("process_vm_readv", chunk, buffer)
    done = 0
    with memoryview(buffer) as view:
        while done < chunk.size_bytes:
            done += os.pwrite(chunk.fd, view[done : chunk.size_bytes], chunk.offset + done)


def _save_to_disk(chunk: _Chunk, buffer: mmap) -> None:
    _save(chunk, buffer)
    linux.start_writing(chunk.fd, chunk.offset, chunk.size_bytes)


def _fill(chunk: _Chunk, buffer: mmap) -> None:
    done = 0
    with memoryview(buffer) as view:
        while done < chunk.size_bytes:
            read = os.preadv(chunk.fd, [view[done : chunk.size_bytes]], chunk.offset + done)
            if read == 0:
                raise CommandError(f"memory of process {chunk.pid}: its file was cut")
            done += read
    _transfer("process_vm_writev", chunk, buffer)


def _transfer(name: str, chunk: _Chunk, buffer: mmap) -> None:
    """Copy between *buffer* and the process. Spec: process_vm_readv(2)."""
    here = _IoVector(ctypes.addressof(ctypes.c_char.from_buffer(buffer)), chunk.size_bytes)
    there = _IoVector(chunk.address, chunk.size_bytes)
    moved = _libc[name](
        chunk.pid,
        ctypes.byref(here),
        ctypes.c_ulong(1),
        ctypes.byref(there),
        ctypes.c_ulong(1),
        ctypes.c_ulong(0),
    )
    if moved < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}", f"process {chunk.pid}")
    if moved < chunk.size_bytes:
        raise CommandError(
            f"process {chunk.pid}: {moved} of {chunk.size_bytes} bytes at {chunk.address:#x} could "
            "be reached: the rest is not mapped"
        )
