"""What a seccomp filter may answer for given system calls, whatever their arguments. Pure.

A filter is a loop-free classic BPF program over struct seccomp_data. It is run here for one
architecture and for many system call numbers at once: arguments are unknown, so a test of one goes
both ways; a test of the number splits the set. What can't be told counts as let through.

Spec: linux kernel/seccomp.c seccomp_check_filter and seccomp_run_filters, include/uapi/linux/
filter.h and seccomp.h.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from typing import NamedTuple

from grit_runtime.errors import PrivilegeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_STEPS = 200_000  # libseccomp's default profile takes one for each of its 1300 instructions
MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS

_INSTRUCTION = struct.Struct("<HBBI")
_DATA_BYTES = 64
_U32 = (1 << 32) - 1
_ACTION = 0xFFFF0000
# USER_NOTIF, TRACE, LOG and ALLOW: whoever is asked may say yes.
_PERMISSIVE = frozenset({0x7FC00000, 0x7FF00000, 0x7FFC0000, 0x7FFF0000})

# A register: a number, or one of these.
_UNKNOWN = -1
_NUMBER = -2  # the system call's


class _State(NamedTuple):
    """Registers and memory cells where a set of system calls has come to."""

    a: int
    x: int
    cells: tuple[int, ...]


class _Calls(NamedTuple):
    """The system calls asked for, ascending; a set of them is a mask of bits in this order."""

    numbers: tuple[int, ...]
    bits: dict[int, int]

    def above(self, value: int) -> int:
        return -1 << bisect_right(self.numbers, value)

    def from_(self, value: int) -> int:
        return -1 << bisect_left(self.numbers, value)
