"""Tar headers, held against Python's tarfile and GNU tar."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.errors import ImageError
from grit_runtime.wire import tar
from grit_runtime.wire.tar import Member

if TYPE_CHECKING:
    from pathlib import Path

FILE = Member(b"a/b", tar.FILE, 0o644, 1, 2, 3_000_000_000, {})

FORMATS: dict[str, Literal[0, 1, 2]] = {
    "ustar": tarfile.USTAR_FORMAT,
    "gnu": tarfile.GNU_FORMAT,
    "pax": tarfile.PAX_FORMAT,
}

paths = st.binary(min_size=1, max_size=300).filter(lambda n: b"\0" not in n and n[-1:] != b"/")
times_ns = st.integers(-(1 << 62) * 10**9, (1 << 62) * 10**9)
# A record's key ends at the first equals sign; the writer's caller keeps it out of names.
xattr_names = st.from_regex(rb"[^=\x00]{1,40}", fullmatch=True)


@st.composite
def members(draw: st.DrawFn) -> Member:
    kind = draw(st.sampled_from(sorted("0123456")))
    return Member(
        draw(paths),
        kind,
        draw(st.integers(0, 0o7777)),
        draw(st.integers(0, tar.MAX_ID)),
        draw(st.integers(0, tar.MAX_ID)),
        draw(times_ns),
        draw(st.dictionaries(xattr_names, st.binary(max_size=200), max_size=3)),
        size_bytes=draw(st.integers(0, tar.MAX_SIZE_BYTES)) if kind == tar.FILE else 0,
        link=draw(paths) if kind in {tar.HARD_LINK, tar.SYMLINK} else b"",
        device=draw(st.tuples(st.integers(0, 4095), st.integers(0, (1 << 20) - 1)))
        if kind in {tar.CHAR_DEVICE, tar.BLOCK_DEVICE}
        else (0, 0),
    )


def read_member(data: bytes) -> Member | None:
    """The first member of *data*; like any source, refuses to read past its end."""
    stream = io.BytesIO(data)

    def read(size_bytes: int) -> bytes:
        piece = stream.read(size_bytes)
        if len(piece) < size_bytes:
            raise ImageError("ends too early")
        return piece

    return tar.read_member(read)


def patched(block: bytes, offset: int, field: bytes) -> bytes:
    """A header with *field* at *offset* and its checksum made right again."""
    block = block[:offset] + field + block[offset + len(field) :]
    unsigned = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(unsigned) + block[156:]


def pax(body: bytes, kind: bytes = b"x") -> bytes:
    """An extended header with *body*, for a file to follow."""
    header = tar.encode(FILE._replace(name=b"pax", size_bytes=len(body)))
    return patched(header, 156, kind) + body + bytes(tar.padding(len(body)))


@given(members())
def test_a_member_is_read_as_it_was_written(member: Member) -> None:
    data = tar.encode(member)
    assert len(data) % tar.BLOCK_BYTES == 0
    assert read_member(data) == member


@given(members().filter(lambda m: m.size_bytes < 1000))
def test_tarfile_reads_what_is_written(member: Member) -> None:
    data = tar.encode(member) + bytes(member.size_bytes + tar.padding(member.size_bytes)) + tar.END
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8") as archive:
        [read] = archive.getmembers()
    assert read.name.encode(errors="surrogateescape") == member.name.rstrip(b"/")
    assert read.type.decode() == member.kind
    assert (read.mode, read.uid, read.gid) == (member.mode, member.uid, member.gid)
    assert read.size == member.size_bytes
    assert read.mtime == pytest.approx(member.mtime_ns / 1e9, abs=1e-6)
    assert read.linkname.encode(errors="surrogateescape") == member.link.rstrip(b"/")
    assert (read.devmajor, read.devminor) == member.device
    assert {
        key.encode(errors="surrogateescape"): value.encode(errors="surrogateescape")
        for key, value in read.pax_headers.items()
        if key.startswith("SCHILY.xattr.")
    } == {b"SCHILY.xattr." + key: value for key, value in member.xattrs.items()}


@pytest.mark.parametrize("tar_format", FORMATS.values(), ids=FORMATS)
@given(
    name=st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=90),
    ids=st.tuples(st.integers(0, 0o7777777), st.integers(0, 0o7777777)),
    mtime_s=st.integers(0, 0o77777777777),
    link=st.sampled_from(["", "x" * 90]),
)
def test_what_tarfile_writes_is_read(
    tar_format: Literal[0, 1, 2], name: str, ids: tuple[int, int], mtime_s: int, link: str
) -> None:
    info = tarfile.TarInfo(name[:24])
    info.type, info.linkname = (tarfile.SYMTYPE, link) if link else (tarfile.REGTYPE, "")
    info.uid, info.gid = ids
    info.mtime = mtime_s
    data = info.tobuf(tar_format, "utf-8", "surrogateescape")
    read = read_member(data)
    assert read == Member(
        name[:24].encode(),
        tar.SYMLINK if link else tar.FILE,
        0o644,
        *ids,
        mtime_s * 10**9,
        {},
        link=link.encode(),
    )


@pytest.mark.parametrize("tar_format", ["gnu", "pax"])
def test_tarfiles_long_names_and_large_numbers_are_read(tar_format: str) -> None:
    info = tarfile.TarInfo("d/" * 150 + "é")
    info.type, info.linkname = tarfile.LNKTYPE, "t/" * 150 + "é"
    info.uid, info.gid, info.mtime = tar.MAX_ID, 1 << 21, 1 << 34
    read = read_member(info.tobuf(FORMATS[tar_format]))
    assert read is not None
    assert read.name == info.name.encode()
    assert read.link == info.linkname.encode()
    assert (read.uid, read.gid, read.mtime_ns) == (tar.MAX_ID, 1 << 21, (1 << 34) * 10**9)


def test_a_time_before_1970_is_read_from_base_256() -> None:
    info = tarfile.TarInfo("a")
    info.mtime = -7
    read = read_member(info.tobuf(tarfile.GNU_FORMAT))
    assert read is not None
    assert read.mtime_ns == -7 * 10**9


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize("tar_format", ["gnu", "posix", "ustar"])
def test_gnu_tars_archive_is_read(tmp_path: Path, tar_format: str) -> None:
    name = "d" * 60 + "/" + "f" * 80
    path = tmp_path / name
    path.parent.mkdir()
    path.write_bytes(b"data")
    argv = ["tar", f"--format={tar_format}", "--numeric-owner", "--mtime=@12", "-C", str(tmp_path)]
    data = subprocess.check_output([*argv, "-cf", "-", name])
    read = read_member(data)
    assert read is not None
    assert read.name == name.encode()
    assert (read.kind, read.size_bytes, read.mtime_ns) == (tar.FILE, 4, 12 * 10**9)
    assert read.mode == path.stat().st_mode & 0o7777


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
def test_gnu_tar_lists_what_is_written() -> None:
    member = FILE._replace(name=b"n" * 200, mtime_ns=1_700_000_000_123_456_789, uid=3_000_000)
    listed = subprocess.check_output(
        ["tar", "--full-time", "--numeric-owner", "-tvf", "-"],
        input=tar.encode(member) + tar.END,
        env={"TZ": "UTC", "LC_ALL": "C"},
    )
    assert listed.split() == [
        b"-rw-r--r--",
        b"3000000/2",
        b"0",
        b"2023-11-14",
        b"22:13:20.123456789",
        b"n" * 200,
    ]


def test_two_blocks_of_zeros_end_the_archive() -> None:
    assert read_member(tar.END) is None


def test_contiguous_files_are_files() -> None:
    for kind in (b"7", b"\0"):
        assert read_member(patched(tar.encode(FILE), 156, kind)) == FILE


def test_an_empty_record_means_the_headers_own_value() -> None:
    assert read_member(pax(b"8 path=\n7 uid=\n9 mtime=\n") + tar.encode(FILE)) == FILE


def test_a_comment_for_all_members_is_passed_over() -> None:
    assert read_member(pax(b"13 comment=x\n", b"g") + tar.encode(FILE)) == FILE


def file_after(*records: bytes) -> bytes:
    """FILE, with an extended header of *records*."""
    return pax(b"".join(records)) + tar.encode(FILE)


BAD = {
    "no header": (b"x" * 512, "no ustar or GNU tar header"),
    "one block of zeros": (bytes(512) + tar.encode(FILE), "lone block of zeros"),
    "an extended header and no member": (pax(b"9 path=a\n") + tar.END, "lone block of zeros"),
    "a wrong checksum": (b"X" + tar.encode(FILE)[1:], "wrong checksum"),
    "v7 format": (patched(tar.encode(FILE), 257, bytes(8)), "no ustar or GNU tar header"),
    "a number that is none": (patched(tar.encode(FILE), 108, b"9"), "expected an octal number"),
    "a negative size": (patched(tar.encode(FILE), 124, b"\xff" * 12), "size is -1, expected 0 to"),
    "a huge size": (patched(tar.encode(FILE), 124, b"\x80" + b"\x7f" * 11), "size is 154135671"),
    "a huge time": (patched(tar.encode(FILE), 136, b"\x80" + b"\x7f" * 11), "mtime is 154135671"),
    "uid -1": (file_after(b"18 uid=4294967295\n"), "uid is 4294967295, expected 0 to"),
    "a negative uid": (file_after(b"10 uid=-1\n"), "b'-1' in an extended header, expected a"),
    "a uid with an underscore": (file_after(b"11 uid=1_0\n"), "b'1_0' in an extended header"),
    "a uid of many digits": (file_after(tar._record(b"uid", b"1" * 5000)), "expected a number"),
    "a device of no major": (
        patched(tar.encode(FILE._replace(kind="3")), 329, b"7777777"),
        "devmajor is 2097151, expected 0 to 4095",
    ),
    "a link to nowhere": (tar.encode(FILE._replace(kind=tar.SYMLINK)), "leads nowhere"),
    "a directory with data": (
        tar.encode(FILE._replace(kind=tar.DIRECTORY, size_bytes=1)),
        "size is 1, expected 0 to 0",
    ),
    "a hard link with data": (
        tar.encode(FILE._replace(kind=tar.HARD_LINK, link=b"b", size_bytes=1)),
        "size is 1, expected 0 to 0",
    ),
    "a file named as a directory": (tar.encode(FILE._replace(name=b"a/")), "name of a directory"),
    "a name with a NUL": (file_after(b"12 path=a\0b\n"), "too long or has a NUL"),
    "a long name": (file_after(tar._record(b"path", b"a" * 4096)), "too long or has a NUL"),
    "a GNU sparse file": (patched(tar.encode(FILE), 156, b"S"), "has type 'S', expected 0 to 7"),
    "a volume label": (patched(tar.encode(FILE), 156, b"V"), "has type 'V', expected 0 to 7"),
    "a pax sparse file": (file_after(b"22 GNU.sparse.major=1\n"), "is stored sparse"),
    "records for all": (pax(b"9 path=a\n", b"g") + tar.encode(FILE), "global extended header"),
    "a huge extended header": (patched(pax(b""), 124, b"77777777777\0"), "of 8589934591 bytes"),
    "a negative extended header": (patched(pax(b""), 124, b"\xff" * 12), "of -1 bytes"),
    "a record longer than the header": (file_after(b"90 path=a\n"), "bad record at byte 0"),
    "a record shorter than its key": (file_after(b"4 path=a\n"), "bad record at byte 0"),
    "a record of no length": (file_after(b"0 path=a\n"), "bad record at byte 0"),
    "a second record of no length": (file_after(b"9 path=a\n0 uid=1\n"), "bad record at byte 9"),
    "a record without its newline": (file_after(b"9 path=a "), "bad record at byte 0"),
    "a record without a key": (file_after(b"5 =a\n"), "bad record at byte 0"),
    "a record without a value": (file_after(b"7 path\n"), "bad record at byte 0"),
    "an mtime that is none": (file_after(b"13 mtime=1e3\n"), "mtime b'1e3' in an extended header"),
    "an mtime of a sign": (file_after(b"11 mtime=-\n"), "mtime b'-' in an extended header"),
    "an mtime of many digits": (file_after(tar._record(b"mtime", b"1" * 5000)), "expected seconds"),
    "endless extended headers": (pax(b"9 path=a\n") * 9 + tar.encode(FILE), "more than 8 extended"),
}


@pytest.mark.parametrize(("data", "reason"), BAD.values(), ids=BAD)
def test_a_bad_header_is_refused_in_one_line(data: bytes, reason: str) -> None:
    with pytest.raises(
        ImageError, match=rf"^tar: [^\n]{{0,300}}{re.escape(reason)}[^\n]{{0,100}}$"
    ):
        read_member(data)


@pytest.mark.parametrize("member", [FILE._replace(name="é".encode()), FILE._replace(link=b"\xff")])
def test_names_outside_ascii_are_in_records(member: Member) -> None:
    assert tar.encode(member).startswith(b"PaxHeaders/")


@pytest.mark.parametrize("seconds", [-1, 1 << 33, -(1 << 40)])
def test_whole_seconds_that_no_header_holds_are_kept(seconds: int) -> None:
    member = FILE._replace(mtime_ns=seconds * 10**9)
    assert read_member(tar.encode(member)) == member


def test_the_type_in_the_mode_is_left_out() -> None:
    assert read_member(patched(tar.encode(FILE), 100, b"0100644")) == FILE


def test_a_prefix_is_part_of_the_name_in_ustar_only() -> None:
    header = patched(tar.encode(FILE), 345, b"dir")
    assert read_member(header) == FILE._replace(name=b"dir/a/b")
    assert read_member(patched(header, 257, b"ustar  \0")) == FILE


def test_an_archive_cut_anywhere_is_refused() -> None:
    data = tar.encode(FILE._replace(name=b"n" * 200)) + tar.END
    for end in range(len(data) - len(tar.END)):
        with pytest.raises(ImageError):
            read_member(data[:end])


@given(st.binary(max_size=2048))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    read_or_refuse(data)


@given(members(), st.integers(0, 2047), st.binary(min_size=1, max_size=20))
def test_any_damage_is_read_or_refused(member: Member, offset: int, damage: bytes) -> None:
    data = tar.encode(member)
    offset %= len(data)
    data = data[:offset] + damage + data[offset + len(damage) :]
    read_or_refuse(data)
    start = offset - offset % tar.BLOCK_BYTES
    block = data[start : start + tar.BLOCK_BYTES].ljust(tar.BLOCK_BYTES, b"\0")
    read_or_refuse(data[:start] + patched(block, 0, b"") + data[start + tar.BLOCK_BYTES :])


def read_or_refuse(data: bytes) -> None:
    member: Member | str | None
    try:
        member = read_member(data)
    except ImageError as error:
        member = str(error)
    if isinstance(member, str):
        assert re.fullmatch(r"[^\n]{1,400}", member)
    else:
        assert member is None or read_member(tar.encode(member)) == member


def test_a_name_is_shown_on_one_short_line() -> None:
    assert tar.shown(b"a\n\xff'b") == '"a\\n\\xff\'b"'
    assert len(tar.shown(b"\n" * 4000)) < 210
