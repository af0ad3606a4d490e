"""The table of system calls, compared with the kernel's own headers (package linux-libc-dev)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from grit_runtime.model.syscall_numbers import ARCHITECTURES, NUMBERS

HEADERS = Path("/usr/include/x86_64-linux-gnu/asm")
CALL = re.compile(r"^#define __NR_(\w+) (?:\(__X32_SYSCALL_BIT \+ )?(\d+)\)?$", re.MULTILINE)


@pytest.mark.parametrize(
    ("header", "architecture"),
    [("unistd_64.h", "x86_64"), ("unistd_x32.h", "x32"), ("unistd_32.h", "x86")],
)
def test_each_call_has_the_number_of_the_kernels_header(header: str, architecture: str) -> None:
    found = CALL.findall((HEADERS / header).read_text())
    numbers = {name: int(number) for name, number in found}
    assert len(numbers) > 300
    column = ARCHITECTURES.index(architecture)
    assert numbers == {name: NUMBERS[name][column] for name in numbers}
