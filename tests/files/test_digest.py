"""Digests, held against sha256 and BLAKE3 over the same bytes."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from blake3 import blake3

from grit_runtime.errors import ImageError
from grit_runtime.files import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def dir_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def expected(data: bytes) -> str:
    """The digest by the book: the module's docstring."""
    if len(data) <= 16 << 20:
        return f"sha256:{hashlib.sha256(data).hexdigest()}"
    return f"blake3-4m:{joined(data, 4 << 20, blake3)}"


def joined(data: bytes, piece_bytes: int, new: Callable[[bytes], Any]) -> str:
    """The digest of the digests of *data*'s pieces, in hexadecimal."""
    pieces = [data[at : at + piece_bytes] for at in range(0, len(data), piece_bytes)]
    return str(new(b"".join(new(piece).digest() for piece in pieces)).hexdigest())


def content(size_bytes: int) -> bytes:
    """Bytes in which no two stretches are alike."""
    return hashlib.shake_128(b"").digest(size_bytes)


@pytest.mark.parametrize(
    "size_bytes",
    [0, 1, (128 << 10) - 1, 128 << 10, (128 << 10) + 1, (512 << 10) + 1, 16 << 20],
)
def test_up_to_16_mib_it_is_the_files_sha256(tmp_path: Path, dir_fd: int, size_bytes: int) -> None:
    data = content(size_bytes)
    (tmp_path / "file").write_bytes(data)
    assert digest.digest_tree(dir_fd, ["file"]) == {"file": (size_bytes, expected(data))}


@pytest.mark.parametrize("size_bytes", [(16 << 20) + 1, 80 << 20])
def test_above_16_mib_it_is_made_of_pieces(tmp_path: Path, dir_fd: int, size_bytes: int) -> None:
    data = content(size_bytes)
    (tmp_path / "file").write_bytes(data)
    assert digest.digest_tree(dir_fd, ["file"]) == {"file": (size_bytes, expected(data))}


@pytest.mark.parametrize("size_bytes", [40 << 20, 80 << 20])
@pytest.mark.parametrize(("name", "new"), [("sha256", hashlib.sha256), ("blake3", blake3)])
def test_a_digest_of_an_earlier_manifest_is_compared_with_the_same(
    tmp_path: Path, dir_fd: int, name: str, new: Callable[[bytes], Any], size_bytes: int
) -> None:
    data = content(size_bytes // 2) + bytes(size_bytes // 2)
    (tmp_path / "file").write_bytes(data[: size_bytes // 2])
    os.truncate(tmp_path / "file", size_bytes)  # with a hole of more than a piece
    before = f"{name}-16m:{joined(data, 16 << 20, new)}"
    if size_bytes <= 64 << 20:
        before = f"sha256:{hashlib.sha256(data).hexdigest()}"
    found = digest.digest_tree(dir_fd, ["file"], {"file": before})
    assert found == {"file": (size_bytes, before)}


def test_every_file_of_a_tree_gets_its_own(tmp_path: Path, dir_fd: int) -> None:
    data = content(6 << 20)
    files = {f"d{at % 3}/f{at}": data[at : at * 250_000] for at in range(24)}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert sum(map(len, files.values())) > 64 << 20  # enough for threads
    assert digest.digest_tree(dir_fd, files) == {
        name: (len(data), expected(data)) for name, data in files.items()
    }


@pytest.mark.parametrize("at", [0, (4 << 20) - 1, 4 << 20, (65 << 20) - 1])
def test_one_flipped_bit_anywhere_changes_it(tmp_path: Path, dir_fd: int, at: int) -> None:
    size_bytes = 65 << 20
    with (tmp_path / "file").open("wb") as file:
        file.truncate(size_bytes)
        whole = digest.digest_tree(dir_fd, ["file"])
        file.seek(at)
        file.write(b"\1")
    assert digest.digest_tree(dir_fd, ["file"]) != whole


def test_pieces_in_another_order_change_it(tmp_path: Path, dir_fd: int) -> None:
    one, other, rest = content(4 << 20), bytes(4 << 20), bytes(33 << 20)
    (tmp_path / "a").write_bytes(one + other + rest)
    (tmp_path / "b").write_bytes(other + one + rest)
    digests = digest.digest_tree(dir_fd, ["a", "b"])
    assert digests["a"] != digests["b"]


@pytest.mark.parametrize("size_bytes", [10, 1 << 20, 70 << 20])
def test_a_file_shorter_than_said_is_named(tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(size_bytes - 1)
    fd = os.open(path, os.O_RDONLY)
    try:
        reason = f"ends at byte {size_bytes - 1}, expected {size_bytes}"
        files = {"file": (size_bytes, digest.kind(size_bytes))}
        with pytest.raises(ImageError, match=re.escape(reason)):
            digest._digests(lambda _: os.dup(fd), files)
    finally:
        os.close(fd)


def test_a_file_that_claims_more_than_there_is_memory_is_refused(
    tmp_path: Path, dir_fd: int
) -> None:
    (tmp_path / "file").touch()
    os.truncate(tmp_path / "file", (1 << 42) + 1)
    with pytest.raises(ImageError, match="'file' holds 4398046511105 bytes, expected at most"):
        digest.digest_tree(dir_fd, ["file"])


@pytest.mark.parametrize("name", ["link", "sub", "fifo"])
def test_only_regular_files_have_one(tmp_path: Path, dir_fd: int, name: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "sub").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ImageError, match=f"'{name}' is .*, expected a"):
        digest.digest_tree(dir_fd, ["file", name])


def test_no_descriptor_is_left_open(tmp_path: Path, dir_fd: int) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(content(30 << 20))
    before = len(os.listdir("/proc/self/fd"))
    digest.digest_tree(dir_fd, ["a", "b", "c"])
    with pytest.raises(FileNotFoundError):
        digest.digest_tree(dir_fd, ["a", "none"])
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_small_checkpoint_does_not_pay_for_threads(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content(10 << 20))
    code = (
        "import os, sys\n"
        "from grit_runtime.files import digest\n"
        "digest.digest_tree(os.open(sys.argv[1], os.O_RDONLY), ['file'])\n"
        "sys.exit('concurrent.futures' in sys.modules or 'threading' in sys.modules)"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(digest.__file__)))
    argv = [sys.executable, "-SE", "-c", code, str(tmp_path)]
    assert subprocess.run(argv, cwd=root, check=False).returncode == 0


@pytest.mark.parametrize("data_at", [[], [0], [40 << 20], [(96 << 20) - 1, 5 << 20]])
def test_a_hole_is_hashed_as_the_zeros_it_stands_for(tmp_path: Path, data_at: list[int]) -> None:
    size_bytes = (96 << 20) + 4096
    for name, zeros in (("sparse", b""), ("full", bytes(size_bytes))):
        with (tmp_path / name).open("wb") as file:
            file.write(zeros)
            file.truncate(size_bytes)
            for offset in data_at:
                file.seek(offset)
                file.write(b"x")
    assert (tmp_path / "sparse").stat().st_blocks < 1000
    fd = os.open(tmp_path, os.O_RDONLY)
    found = digest.digest_tree(fd, ["sparse", "full"])
    os.close(fd)
    assert found["sparse"] == found["full"]
