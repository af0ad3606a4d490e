"""CRIU image files, against images that real CRIU made."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.errors import ImageError
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image
from grit_runtime.wire.criu_image import Image, Pages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from google.protobuf.message import Message

GOLDENS = Path(__file__).parent.parent / "goldens"
IMAGES = [
    path
    for path in sorted(GOLDENS.glob("criu-*/*/*"))
    if path.name != "config.json" and not path.name.startswith("tmpfs-dev-")
]
ROOT = GOLDENS / "criu-4.2" / "root"


def golden(name: str) -> Image:
    return criu_image.parse((ROOT / name).read_bytes(), name=name)


def golden_id(path: Path) -> str:
    return "/".join(path.parts[-3:])


@pytest.mark.parametrize("path", IMAGES, ids=golden_id)
def test_every_image_of_a_real_dump_decodes_and_serializes_to_the_same_bytes(path: Path) -> None:
    data = path.read_bytes()
    image = criu_image.parse(data, name=path.name)
    decoded = criu_image.entries(image, criu_image.kind_of(path.name).message)
    assert len(decoded) == len(image.payloads) > 0
    assert criu_image.serialize(image) == data


def test_the_goldens_hold_every_kind_that_a_plain_container_has() -> None:
    kinds = {criu_image.kind_of(path.name) for path in IMAGES}
    absent = {"apparmor", "ghost-file", "pagemap", "pagemap-shmem", "pidns", "userns"}
    absent |= {"remap-fpath", "tcp-stream"}
    assert kinds == {kind for name, kind in criu_image.KINDS.items() if name not in absent}


@pytest.mark.parametrize(
    ("name", "message", "field", "expected"),
    [
        ("inventory.img", criu.inventory_entry, "img_version", 2),
        ("utsns-12.img", criu.utsns_entry, "nodename", b"pod-a"),
        ("mm-1.img", criu.mm_entry, "dumpable", 1),
        ("core-10.img", criu.core_entry, "mtype", 1),
    ],
)
def test_a_field_of_a_real_image_reads_as_crit_shows_it(
    name: str, message: type[criu.inventory_entry], field: str, expected: object
) -> None:
    assert getattr(criu_image.entry(golden(name), message), field) == expected


def test_decoding_keeps_the_fields_that_our_messages_do_not_name() -> None:
    image = golden("core-1.img")
    core = criu_image.entry(image, criu.core_entry)
    again = criu_image.entry(criu_image.with_entry(image, 0, core), criu.core_entry)
    assert again.SerializeToString() == core.SerializeToString()
    assert len(core.SerializeToString()) == len(image.payloads[0])  # registers and timers included


def test_a_replaced_entry_changes_no_other_entry() -> None:
    image = golden("mountpoints-13.img")
    mounts = criu_image.entries(image, criu.mnt_entry)
    mounts[3].ext_key = b"/other"
    changed = criu_image.parse(
        criu_image.serialize(criu_image.with_entry(image, 3, mounts[3])), name=image.name
    )
    assert criu_image.entries(changed, criu.mnt_entry)[3].ext_key == b"/other"
    assert changed.payloads[:3] == image.payloads[:3]
    assert changed.payloads[4:] == image.payloads[4:]


@pytest.mark.parametrize("name", ["utsns-12.img", "mountpoints-13.img", "inventory.img"])
def test_an_image_cut_anywhere_is_whole_up_to_an_entry_or_refused(name: str) -> None:
    data = (ROOT / name).read_bytes()
    whole = criu_image.parse(data, name=name)
    ends = {len(whole.head) + sum(4 + len(p) for p in whole.payloads[:n]): n for n in range(99)}
    for cut in range(len(data)):
        if cut in ends:
            assert criu_image.parse(data[:cut], name=name).payloads == whole.payloads[: ends[cut]]
        else:
            with pytest.raises(ImageError, match=name):
                criu_image.parse(data[:cut], name=name)


def test_a_truncated_entry_is_named_with_its_end_and_the_size_of_the_file() -> None:
    data = (ROOT / "utsns-12.img").read_bytes()
    with pytest.raises(
        ImageError,
        match=r"^image utsns-12\.img: entry 0 ends at 27 of 26 bytes; the file is truncated or",
    ):
        criu_image.parse(data[:-1], name="utsns-12.img")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pages-1.img", "expected one of the kinds"),
        ("pipes-data.img", "expected one of the kinds"),
        ("tmpfs-dev-55.tar.gz.img", "expected one of the kinds"),
        ("descriptors.json", "expected one of the kinds"),
        ("", "expected one of the kinds"),
        ("pstree.img", "starts with 1943565403324754, expected 1943565430302750"),
        ("inventory.img", "starts with 19435654, expected 16313158"),
        ("stats-dump", "expected 4059105506330957"),
    ],
)
def test_an_image_of_another_or_an_unknown_kind_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ImageError, match=f"^image {name}: .*{reason}"):
        criu_image.parse((ROOT / "utsns-12.img").read_bytes(), name=name)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "entry 0 is a utsns_entry without its required fields"),
        (b"\x0a\x01a", "entry 0 is a utsns_entry without its required fields"),
        (b"\x0a\x7f", "entry 0 is not a utsns_entry"),
        (b"\xff\xff", "entry 0 is not a utsns_entry"),
    ],
)
def test_an_entry_that_is_not_its_message_is_refused(payload: bytes, reason: str) -> None:
    image = golden("utsns-12.img")._replace(payloads=(payload,))
    with pytest.raises(ImageError, match=f"^image utsns-12.img: {reason}"):
        criu_image.entries(image, criu.utsns_entry)


def test_an_entry_nested_deeper_than_a_decoder_should_follow_is_refused() -> None:
    payload = b"\x0a\x00"
    for _ in range(200):
        payload = b"\x0a\x00\x12" + _varint(len(payload)) + payload
    controllers = b"\x12" + _varint(len(payload)) + payload
    image = Image("cgroup.img", criu_image.kind_of("cgroup.img").magics, (controllers,))
    with pytest.raises(ImageError, match=r"entry 0 is not a cgroup_entry"):
        criu_image.entry(image, criu.cgroup_entry)


@pytest.mark.parametrize("count", [0, 2])
def test_an_image_with_other_than_one_entry_has_no_single_entry(count: int) -> None:
    image = golden("utsns-12.img")
    with pytest.raises(ImageError, match=f"^image utsns-12.img: {count} entries, expected one"):
        criu_image.entry(image._replace(payloads=image.payloads * count), criu.utsns_entry)


# A deleted device node that a task held open, as CRIU 4.2.1 dumped it.
GHOST = bytes.fromhex(
    "194356540536585229000000"
    "0800100018a443208c0128dd81663083023a0a08dfaf99d806108bca30420a08dfaf99d806108bca30"
)


def test_an_entry_is_read_apart_from_the_raw_data_behind_it() -> None:
    image = criu_image.parse_beginning(GHOST + b"its content", name="ghost-file-3.img")
    ghost = criu_image.entry(image, criu.ghost_file_entry)
    assert (oct(ghost.mode), ghost.rdev) == ("0o20644", 0x103)


@given(st.binary(max_size=60))
def test_any_beginning_decodes_or_is_refused(data: bytes) -> None:
    for beginning in (data, GHOST[:8] + data):
        try:
            image = criu_image.parse_beginning(beginning, name="ghost-file-3.img")
            criu_image.entry(image, criu.ghost_file_entry)
        except ImageError as error:
            assert "\n" not in str(error)


def test_an_image_larger_than_any_metadata_is_refused_unread() -> None:
    with pytest.raises(ImageError, match=r"expected at most 67108864"):
        criu_image.parse(bytes(criu_image.MAX_IMAGE_BYTES + 1), name="files.img")


def test_an_image_with_more_entries_than_a_process_can_have_files_is_refused() -> None:
    head = criu_image.kind_of("files.img").magics
    with pytest.raises(ImageError, match=r"expected at most 1048576 entries"):
        criu_image.parse(head + bytes(4) * (criu_image.MAX_ENTRIES + 1), name="files.img")


def test_a_name_is_read_as_the_operating_system_gives_it() -> None:
    assert criu_image.text(b"/caf\xc3\xa9/\xff") == "/caf\N{LATIN SMALL LETTER E WITH ACUTE}/\udcff"


def test_a_name_that_criu_would_cut_at_a_nul_is_refused() -> None:
    with pytest.raises(ImageError, match=r"b'/data\\x00/x' holds a NUL"):
        criu_image.text(b"/data\0/x")


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=20))))
def test_what_is_serialized_parses_to_the_same_entries(names: list[tuple[bytes, bytes]]) -> None:
    messages = [criu.utsns_entry(nodename=a, domainname=b) for a, b in names]
    payloads = tuple(message.SerializeToString() for message in messages)
    image = Image("utsns-1.img", criu_image.kind_of("utsns-1.img").magics, payloads)
    again = criu_image.parse(criu_image.serialize(image), name="utsns-1.img")
    assert again == image
    assert criu_image.entries(again, criu.utsns_entry) == messages


@given(st.sampled_from(sorted(criu_image.KINDS)), st.lists(st.binary(max_size=60), max_size=4))
def test_any_entries_decode_or_are_refused(kind: str, payloads: list[bytes]) -> None:
    name = f"{kind}-1.img"
    image = Image(name, criu_image.kind_of(name).magics, tuple(payloads))
    _decode_or_refuse(criu_image.serialize(image), name)


@given(st.sampled_from(sorted(criu_image.KINDS)), st.binary(max_size=80))
def test_any_bytes_after_the_magics_decode_or_are_refused(kind: str, tail: bytes) -> None:
    _decode_or_refuse(criu_image.kind_of(kind).magics + tail, f"{kind}.img")


@given(
    st.sampled_from(IMAGES),
    st.lists(st.tuples(st.integers(min_value=0), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_real_image_with_bytes_changed_decodes_or_is_refused(
    path: Path, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(path.read_bytes())
    for position, value in changes:
        data[position % len(data)] = value
    _decode_or_refuse(bytes(data), path.name)


def _decode_or_refuse(data: bytes, name: str) -> None:
    refusal = None
    decoded: list[Message] = []
    try:
        image = criu_image.parse(data, name=name)
        decoded = criu_image.entries(image, criu_image.kind_of(name).message)
        assert criu_image.serialize(image) == data
    except ImageError as error:
        refusal = str(error)
    assert refusal is None or (refusal.startswith(f"image {name}: ") and "\n" not in refusal)
    assert all(message.IsInitialized() for message in decoded)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


PAGES = st.lists(st.integers(0, 2**36), unique=True, max_size=12).map(
    lambda numbers: [Pages(number << 12, 1 + number % 9) for number in sorted(numbers)]
)


@given(own=PAGES, added=PAGES)
def test_pages_left_to_the_images_below_are_in_order_and_can_be_taken_out_again(
    own: list[Pages], added: list[Pages]
) -> None:
    image = criu_image.pagemap("pagemap-7.img", 3, own)
    added = [pages for pages in added if pages not in own]
    both = criu_image.with_parent_pages(image, added)
    again = criu_image.parse(criu_image.serialize(both), name=image.name)
    assert criu_image.present_pages(again) == own
    assert criu_image.parent_pages(again) == added
    starts = [entry.vaddr for entry in criu_image.entries(strip_head(again), criu.pagemap_entry)]
    assert starts == sorted(starts)
    assert criu_image.pages(again) == (3, sum(pages.number for pages in own))
    assert criu_image.without_parent_pages(again) == image


def strip_head(image: Image) -> Image:
    return image._replace(payloads=image.payloads[1:])
