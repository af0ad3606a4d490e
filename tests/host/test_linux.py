"""System calls of our own, on file systems that know them and on one that does not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from grit_runtime.host import linux

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["ext4", "cgroup"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory of the disk; one in which renames take no flags, as on NFS."""
    if request.param == "ext4":
        yield tmp_path
        return
    # Not in a hierarchy of its own: CRIU wants to mount all that there are.
    pids = Path("/sys/fs/cgroup/pids")
    if not os.access(pids, os.W_OK):
        pytest.skip("needs root, and cgroups of version 1")
    own = pids / f"grit-test-{os.getpid()}"
    own.mkdir()
    try:
        yield own
    finally:
        for left in (own / "one", own / "two", own):
            if left.exists():
                left.rmdir()


def test_a_directory_gets_a_name_that_is_free_and_takes_nobody_s(directory: Path) -> None:
    one, two = directory / "one", directory / "two"
    one.mkdir()
    linux.rename_new(str(one), str(two))
    assert two.exists()
    one.mkdir()
    with pytest.raises(FileExistsError, match="two"):
        linux.rename_new(str(one), str(two))
    assert one.exists()
