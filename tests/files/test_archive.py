"""Archives of container engines, unpacked: what belongs in them arrives, all else is refused."""

from __future__ import annotations

import gzip
import io
import os
import tarfile

import pytest

from grit_runtime.errors import ImageError
from grit_runtime.files import archive, confine
from grit_runtime.wire.layer import Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path


def packed(*members: tarfile.TarInfo, data: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            content = data if member.isreg() else b""
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname = kind, 0o777, link
    return info


def unpacked(tmp_path: Path, data: bytes, limits: Limits | None = None) -> Path:
    source, target = tmp_path / "archive", tmp_path / "target"
    source.write_bytes(data)
    target.mkdir()
    with source.open("rb") as file:
        into_fd = confine.open_dir(str(target))
        try:
            archive.unpack(file.fileno(), into_fd, limits or Limits())
        finally:
            os.close(into_fd)
    return target


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_files_and_directories_arrive_private(tmp_path: Path, pack: type[bytes]) -> None:
    members = [member("./", tarfile.DIRTYPE), member("a", tarfile.DIRTYPE), member("a/b")]
    target = unpacked(tmp_path, pack(packed(*members, data=b"content")))
    assert (target / "a/b").read_bytes() == b"content"
    assert (target / "a/b").stat().st_mode & 0o7777 == 0o600
    assert (target / "a").stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize(
    ("hostile", "reason"),
    [
        (member("/etc/passwd"), "expected a path beneath the root"),
        (member("../up"), "expected a path beneath the root"),
        (member("a/../../up"), "expected a path beneath the root"),
        (member("link", tarfile.SYMTYPE, link="/etc"), "files and directories only"),
        (member("link", tarfile.LNKTYPE, link="a"), "files and directories only"),
        (member("node", tarfile.BLKTYPE), "files and directories only"),
        (member("fifo", tarfile.FIFOTYPE), "files and directories only"),
    ],
    ids=lambda value: value.name if isinstance(value, tarfile.TarInfo) else "",
)
def test_a_member_that_could_lead_out_is_refused(
    tmp_path: Path, hostile: tarfile.TarInfo, reason: str
) -> None:
    with pytest.raises(ImageError, match=reason):
        unpacked(tmp_path, packed(hostile))
    assert list((tmp_path / "target").iterdir()) == []


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        unpacked(tmp_path, packed(member("a"), member("a")))


@pytest.mark.parametrize(
    ("limits", "what"),
    [(Limits(members=1), "members"), (Limits(data_bytes=9), "data_bytes")],
)
def test_an_archive_over_the_limits_is_refused(tmp_path: Path, limits: Limits, what: str) -> None:
    with pytest.raises(ImageError, match=f"over .* {what}"):
        unpacked(tmp_path, packed(member("a"), member("b"), data=b"12345"), limits)


@pytest.mark.parametrize("size_bytes", [2000, 200_000])
def test_an_archive_cut_short_is_refused(tmp_path: Path, size_bytes: int) -> None:
    with pytest.raises(ImageError, match=r"ends (within|before)"):
        unpacked(tmp_path, packed(member("a"), data=b"x" * size_bytes)[:1500])
