"""Copies inside the kernel keep bytes and holes."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from grit_runtime.files import fdcopy

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20


def write_sparse(path: Path, size_bytes: int, *data_at: int) -> None:
    with path.open("wb") as file:
        for offset in data_at:
            file.seek(offset)
            file.write(b"data at %d" % offset)
        file.truncate(size_bytes)


@pytest.mark.parametrize("dst_offset", [0, 512, 5])
@pytest.mark.parametrize(
    "data_at", [(), (0,), (2 * MIB,), (0, 3 * MIB - 20), (0, 3 * MIB + 9999)], ids=str
)
def test_a_range_arrives_with_its_holes(
    tmp_path: Path, data_at: tuple[int, ...], dst_offset: int
) -> None:
    write_sparse(tmp_path / "src", 4 * MIB, *data_at)
    src_fd = os.open(tmp_path / "src", os.O_RDONLY)
    dst_fd = os.open(tmp_path / "dst", os.O_WRONLY | os.O_CREAT)
    os.lseek(dst_fd, dst_offset, os.SEEK_SET)
    fdcopy.copy_range(src_fd, dst_fd, src_offset=0, size_bytes=3 * MIB)
    assert os.lseek(dst_fd, 0, os.SEEK_CUR) == dst_offset + 3 * MIB
    os.ftruncate(dst_fd, dst_offset + 3 * MIB)
    os.close(src_fd)
    os.close(dst_fd)
    copied = (tmp_path / "dst").read_bytes()
    assert copied == bytes(dst_offset) + (tmp_path / "src").read_bytes()[: 3 * MIB]
    assert (tmp_path / "dst").stat().st_blocks * 512 < MIB


def test_a_range_in_the_middle_is_copied(tmp_path: Path) -> None:
    (tmp_path / "src").write_bytes(bytes(range(256)) * 100)
    src_fd = os.open(tmp_path / "src", os.O_RDONLY)
    dst_fd = os.open(tmp_path / "dst", os.O_WRONLY | os.O_CREAT)
    fdcopy.copy_range(src_fd, dst_fd, src_offset=1000, size_bytes=3000)
    os.close(src_fd)
    os.close(dst_fd)
    assert (tmp_path / "dst").read_bytes() == (bytes(range(256)) * 100)[1000:4000]


def test_a_source_that_is_too_short_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "src").write_bytes(b"12345")
    src_fd = os.open(tmp_path / "src", os.O_RDONLY)
    dst_fd = os.open(tmp_path / "dst", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError, match="expected it to stay as it was") as caught:
        fdcopy.copy_range(src_fd, dst_fd, src_offset=0, size_bytes=6)
    os.close(src_fd)
    os.close(dst_fd)
    assert caught.value.errno == errno.ENODATA


def test_all_is_written_to_a_pipe_that_takes_parts() -> None:
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    data = bytes(range(256)) * 4096
    with pytest.raises(BlockingIOError):
        fdcopy.write_all(write_fd, data)  # the part that fits was written before
    with open(read_fd, "rb") as reader:
        os.close(write_fd)
        written = reader.read()
    assert data.startswith(written)
    assert written
