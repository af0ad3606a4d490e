"""Files that are written past the kernel's cache hold what was written to them."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grit_runtime.files.direct import DirectFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
AROUND = st.sampled_from([0, 1, 4095, 4096, 4 * MIB - 1, 4 * MIB, 9 * MIB + 5])


@pytest.fixture(scope="module")
def disk() -> Iterator[Path]:
    """A directory on a disk: of what is in memory there is nothing to pass by."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        yield Path(directory)


@pytest.fixture
def without(tmp_path: Path) -> Iterator[Path]:
    """A file system that has no O_DIRECT."""
    subprocess.run(["mount", "-t", "ramfs", "ramfs", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def written(path: Path, *parts: bytes) -> list[int]:
    """What each write has said that the disk has taken."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        file = DirectFile(fd)
        taken = [file.write(part) for part in parts]
        file.sync()
    finally:
        os.close(fd)
    return taken


def is_cached(path: Path) -> bool:
    with path.open("rb") as file:
        try:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        except BlockingIOError:
            return False
    return True


@settings(deadline=None)  # the disk may be anybody's
@given(sizes=st.lists(AROUND, max_size=4))
def test_all_of_it_is_there(disk: Path, sizes: list[int]) -> None:
    parts = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
    taken = written(disk / "file", *parts)
    assert (disk / "file").read_bytes() == b"".join(parts)
    assert sum(sizes) - 4 * MIB < sum(taken) <= sum(sizes)


def test_what_is_large_is_not_in_the_cache(disk: Path) -> None:
    written(disk / "small", b"a" * MIB)
    written(disk / "large", b"a" * (8 * MIB + 1))
    assert is_cached(disk / "small")
    assert not is_cached(disk / "large")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_where_it_cannot_be_had_it_is_written_all_the_same(without: Path) -> None:
    parts = [b"a" * 5 * MIB, b"b" * MIB]
    assert written(without / "file", *parts) == [0, 0]  # a disk has taken nothing
    assert (without / "file").read_bytes() == b"".join(parts)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    size = ["-o", f"size={6 * MIB}"]
    subprocess.run(["mount", "-t", "tmpfs", *size, "tmpfs", tmp_path], check=True)
    try:
        with pytest.raises(OSError, match="No space left on device"):
            written(tmp_path / "file", b"a" * 9 * MIB)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
