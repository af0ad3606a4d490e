"""The program that exits 0, run where it can be."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from grit_runtime.errors import FailedPreconditionError
from grit_runtime.wire import elf

if TYPE_CHECKING:
    from pathlib import Path


def test_it_exits_0(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(elf.exiting(os.uname().machine))
    program.chmod(0o755)
    assert subprocess.run([program], check=False).returncode == 0


def test_an_unknown_machine_is_named() -> None:
    with pytest.raises(FailedPreconditionError, match="for riscv64"):
        elf.exiting("riscv64")
