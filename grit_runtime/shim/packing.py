"""Fills the holes in this process's memory, so that new objects of a fork lie close together.

An object in a hole makes the fork copy a whole page that it shared with the zygote and all other
shims. There are thousands of holes, left by objects that the zygote has freed.
"""

from __future__ import annotations

import ctypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_IN_A_ROW = 4  # so many neighbouring places lie in no hole any more
_MOST = 2048  # places of a size: another allocator than glibc's and CPython's may never stop

_LARGEST_BYTES = 1 << 16  # below what malloc asks the kernel for one by one
_OBJECT_BYTES = range(512, 32, -16)  # the sizes of Python's own allocator (Objects/obmalloc.c)
_HEADER_BYTES = 33  # of bytes, its NUL included
_CHUNK_BYTES = 8  # what malloc keeps of its own before each piece

_filled: list[bytes] = []
_malloc = ctypes.CDLL(None).malloc
_malloc.restype = ctypes.c_void_p
_malloc.argtypes = [ctypes.c_size_t]


def fill_holes() -> None:
    """Fill the holes of every size, the largest first; the memory is never freed."""
    size = _LARGEST_BYTES
    while size >= 32:
        _fill(lambda size_bytes: int(_malloc(size_bytes - _CHUNK_BYTES)), size)
        size = (size * 3 // 4) & ~15
    for size in _OBJECT_BYTES:
        _fill(_make_object, size)


def _make_object(size_bytes: int) -> int:
    _filled.append(bytes(size_bytes - _HEADER_BYTES))
    return id(_filled[-1])


def _fill(allocate: Callable[[int], int], size_bytes: int) -> None:
    """Call *allocate* with this size until its places follow each other."""
    last = in_a_row = 0
    for _ in range(_MOST):
        place = allocate(size_bytes)
        in_a_row = in_a_row + 1 if place == last + size_bytes else 0
        last = place
        if in_a_row == _IN_A_ROW:
            return
