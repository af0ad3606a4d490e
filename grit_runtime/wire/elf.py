"""The smallest program: an ELF file that exits 0 and needs nothing of the image it runs in.

Spec: System V gABI chapters 4 and 5; linux include/uapi/linux/elf-em.h and the tables of
exit_group, 231 on x86_64 and 94 on aarch64.
"""

import struct

from grit_runtime.errors import FailedPreconditionError

_ADDRESS = 0x400000
_HEADERS_BYTES = 64 + 56

# e_machine, and exit_group(0) in instructions.
_MACHINES = {
    "x86_64": (62, bytes.fromhex("31ff b8e7000000 0f05")),  # xor edi,edi; mov eax,231; syscall
    "aarch64": (183, bytes.fromhex("000080d2 c80b80d2 010000d4")),  # mov x0,0; mov x8,94; svc 0
}


def exiting(machine: str) -> bytes:
    """The program for *machine*, as uname names it."""
    if machine not in _MACHINES:
        raise FailedPreconditionError(
            f"no program that exits 0 for {machine}; known are {', '.join(_MACHINES)}"
        )
    number, code = _MACHINES[machine]
    size = _HEADERS_BYTES + len(code)
    # class 64, little-endian, version 1; then type EXEC ... one program header of 56 bytes
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, number, 1, _ADDRESS + _HEADERS_BYTES, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    # LOAD, readable and executable, from the file's first byte
    load = struct.pack("<IIQQQQQQ", 1, 5, 0, _ADDRESS, _ADDRESS, size, size, 0x1000)
    return header + load + code
