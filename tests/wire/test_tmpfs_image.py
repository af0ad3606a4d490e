"""Device nodes in CRIU's archives of tmpfs: real ones, GNU tar's own, and damaged ones."""

from __future__ import annotations

import gzip
import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.errors import ImageError
from grit_runtime.wire import tmpfs_image
from grit_runtime.wire.tmpfs_image import Node

GOLDENS = Path(__file__).parent.parent / "goldens"
ARCHIVES = sorted(GOLDENS.glob("*/*/tmpfs-dev-*.tar.gz.img"))
DEV = GOLDENS / "criu-4.2" / "user" / "tmpfs-dev-55.tar.gz.img"


def nodes(archive: bytes) -> list[Node]:
    return list(tmpfs_image.device_nodes(io.BytesIO(archive).read, name="t.img"))


def refusal(archive: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        nodes(archive)
    return str(caught.value)


def packed(*members: tarfile.TarInfo, data: bytes = b"") -> bytes:
    """A GNU archive, unpacked, of members that share their data."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(data[: member.size]))
    return file.getvalue()


def device(name: str, major: int, minor: int, kind: bytes = tarfile.CHRTYPE) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.devmajor, member.devminor = kind, major, minor
    return member


def regular(name: str, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    return member


@pytest.mark.parametrize("path", ARCHIVES, ids=lambda path: "/".join(path.parts[-3:]))
def test_the_nodes_of_a_real_dump_are_those_that_tarfile_sees(path: Path) -> None:
    with tarfile.open(path) as archive:
        expected = [
            Node(f"./{member.name}".replace("././", "./"), "c", member.devmajor, member.devminor)
            for member in archive
            if member.ischr()
        ]
    assert nodes(path.read_bytes()) == expected


def test_a_real_dump_of_dev_has_the_nodes_of_runc_and_of_the_pod() -> None:
    assert Node("./fuse", "c", 10, 229) in nodes(DEV.read_bytes())
    assert len(nodes(DEV.read_bytes())) == 7


def test_nodes_stand_between_files_and_under_long_names() -> None:
    long_name = "./" + "d/" * 80 + "sda"
    link = tarfile.TarInfo("./" + "s/" * 80)
    link.type, link.linkname = tarfile.SYMTYPE, "t/" * 80
    archive = packed(
        regular("./f", 700),
        link,
        device(long_name, 8, 1, tarfile.BLKTYPE),
        regular("./g", 512),
        device("./b", 300, 70000),
        data=b"x" * 1000,
    )
    expected = [Node(long_name, "b", 8, 1), Node("./b", "c", 300, 70000)]
    assert nodes(gzip.compress(archive)) == expected


def test_a_sparse_file_as_gnu_tar_packs_it_hides_no_node_behind_it(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        for hole in range(40):
            file.seek(hole * 65536)
            file.write(b"data")
    sparse = subprocess.run(
        ["tar", "--create", "--sparse", "--format=gnu", "--directory", str(tmp_path), "sparse"],
        capture_output=True,
        check=True,
    ).stdout
    header_and_data = sparse.rstrip(b"\0")
    header_and_data += bytes(-len(header_and_data) % 512)
    assert header_and_data[156:157] == b"S"
    assert header_and_data[482] == 1  # more of the map follows
    archive = header_and_data + packed(device("./mem", 1, 1))
    assert nodes(gzip.compress(archive)) == [Node("./mem", "c", 1, 1)]


def test_what_a_second_run_of_gzip_appended_is_read_as_gzip_reads_it() -> None:
    archive = packed(regular("./f", 600), device("./mem", 1, 1), data=b"x" * 600)
    for cut in range(0, len(archive), 100):
        parts = gzip.compress(archive[:cut]) + gzip.compress(archive[cut:])
        assert nodes(parts) == [Node("./mem", "c", 1, 1)]


def test_what_stands_behind_the_end_is_not_read_as_tar_does_not() -> None:
    archive = packed(device("./null", 1, 3)) + packed(device("./mem", 1, 1))
    assert nodes(gzip.compress(archive)) == [Node("./null", "c", 1, 3)]


def test_an_archive_cut_anywhere_before_its_end_is_refused() -> None:
    whole = gzip.decompress(DEV.read_bytes())
    last_header = (len(whole.rstrip(b"\0")) - 1) // 512 * 512
    end = last_header + 1024  # a block of zeros is the end
    assert nodes(gzip.compress(whole[:end])) == nodes(DEV.read_bytes())
    for cut in range(end):
        assert "ends in the middle" in refusal(gzip.compress(whole[:cut]))


def test_a_gzip_stream_cut_anywhere_before_the_last_member_is_refused() -> None:
    archive = gzip.compress(packed(device("./null", 1, 3)), mtime=0)
    found = [_nodes_or_none(archive[:cut]) for cut in range(len(archive))]
    assert found[: len(archive) // 2] == [None] * (len(archive) // 2)
    assert all(result in (None, [Node("./null", "c", 1, 3)]) for result in found)


def altered(archive: bytes, offset: int, value: bytes) -> bytes:
    """The archive with a field of its first header changed and the checksum made right."""
    block = bytearray(archive[:512])
    block[offset : offset + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + archive[512:]


NULL = packed(device("./null", 1, 3))


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        pytest.param(b"", "ends in the middle", id="nothing"),
        pytest.param(b"plain", "not gzip", id="no gzip"),
        pytest.param(gzip.compress(b""), "ends in the middle", id="no tar"),
        pytest.param(gzip.compress(b"x" * 512), "a header that is none", id="no header"),
        pytest.param(gzip.compress(b"y" + NULL[1:]), "a header that is none", id="checksum"),
        pytest.param(gzip.compress(altered(NULL, 257, b"ustar\0")), "none of GNU", id="pax"),
        pytest.param(gzip.compress(altered(NULL, 156, b"x")), "type 'x'", id="pax extension"),
        pytest.param(gzip.compress(altered(NULL, 156, b"g")), "type 'g'", id="pax global"),
        pytest.param(gzip.compress(altered(NULL, 156, b"M")), "type 'M'", id="multi-volume"),
        pytest.param(gzip.compress(altered(NULL, 156, b"\xff")), "type", id="unknown type"),
        pytest.param(
            gzip.compress(altered(NULL, 124, b"00000010000")), "with 4096", id="node with data"
        ),
        pytest.param(gzip.compress(altered(NULL, 329, b"9")), "number b'9", id="no octal number"),
        pytest.param(gzip.compress(packed(regular("/etc/x", 0))), "member /etc/x", id="absolute"),
        pytest.param(gzip.compress(packed(regular("a/../../x", 0))), "a/../../x", id="upwards"),
        pytest.param(
            gzip.compress(packed(regular("../" * 60 + "x", 0))), "member ../../", id="long upwards"
        ),
        pytest.param(
            gzip.compress(altered(altered(NULL, 156, b"L"), 124, b"00000020000")),
            "type 'L' with 8192 bytes",
            id="name too long",
        ),
    ],
)
def test_what_gnu_tar_could_take_in_another_way_is_refused(archive: bytes, reason: str) -> None:
    message = refusal(archive)
    assert message.startswith("image t.img: ")
    assert reason in message
    assert "\n" not in message


def test_more_unpacked_bytes_than_a_tmpfs_holds_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tmpfs_image, "MAX_BYTES", 1 << 20)
    archive = packed(regular("./f", 2 << 20), data=bytes(2 << 20))
    assert "more than 1048576 bytes unpacked" in refusal(gzip.compress(archive))


def test_more_members_than_a_tmpfs_holds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tmpfs_image, "MAX_MEMBERS", 5)
    archive = packed(*[device(f"./{number}", 1, 3) for number in range(6)])
    assert "more than 5 members" in refusal(gzip.compress(archive))


def test_a_name_is_shown_without_what_would_break_a_line() -> None:
    assert nodes(gzip.compress(packed(device("a\nb", 1, 3))))[0].name == "a?b"


@given(
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_any_damage_gives_nodes_or_a_refusal(
    is_inside: bool,  # noqa: FBT001 - hypothesis gives arguments by place
    changes: list[tuple[int, int]],
) -> None:
    data = bytearray(gzip.decompress(DEV.read_bytes()) if is_inside else DEV.read_bytes())
    for position, value in changes:
        data[position % len(data)] = value
    found = _nodes_or_none(gzip.compress(data) if is_inside else bytes(data))
    assert all(node.type in {"b", "c"} for node in found or ())


def _nodes_or_none(archive: bytes) -> list[Node] | None:
    try:
        return nodes(archive)
    except ImageError:
        return None
