"""System calls of our own, on file systems that know them and on one that does not."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from grit_runtime.host import linux

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["ext4", "cgroup"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory of the disk; one in which renames take no flags, as on NFS."""
    if request.param == "ext4":
        yield tmp_path
        return
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    subprocess.run(
        ["mount", "-t", "cgroup", "-o", "none,name=grit-test", "-", tmp_path], check=True
    )
    try:
        yield tmp_path
        for left in ("one", "two"):
            if (tmp_path / left).exists():
                (tmp_path / left).rmdir()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_directory_gets_a_name_that_is_free_and_takes_nobody_s(directory: Path) -> None:
    one, two = directory / "one", directory / "two"
    one.mkdir()
    linux.rename_new(str(one), str(two))
    assert two.exists()
    one.mkdir()
    with pytest.raises(FileExistsError, match="two"):
        linux.rename_new(str(one), str(two))
    assert one.exists()
