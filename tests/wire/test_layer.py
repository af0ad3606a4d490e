"""Names and attributes of image layers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.errors import ImageError
from grit_runtime.wire import layer
from grit_runtime.wire.layer import Opaque, Place, Present, Whiteout

NAMES: dict[bytes, Place] = {
    b"a": Present((b"a",)),
    b"./a": Present((b"a",)),
    b"a/": Present((b"a",)),
    b"./a/b/": Present((b"a", b"b")),
    b".": Present(()),
    b"./": Present(()),
    b"...": Present((b"...",)),
    b".whx": Present((b".whx",)),
    b"a.wh.b": Present((b"a.wh.b",)),
    b"\xff\n": Present((b"\xff\n",)),
    b".wh.a": Whiteout((), b"a"),
    b"./d/.wh.a": Whiteout((b"d",), b"a"),
    b"d/.wh..a": Whiteout((b"d",), b".a"),
    b"d/.wh....": Whiteout((b"d",), b"..."),
    b".wh..wh..opq": Opaque(()),
    b"a/b/.wh..wh..opq": Opaque((b"a", b"b")),
}


@pytest.mark.parametrize(("name", "place"), NAMES.items(), ids=map(repr, NAMES))
def test_a_name_stands_for_a_file_or_a_whiteout(name: bytes, place: Place) -> None:
    assert layer.parse_name(name) == place


@pytest.mark.parametrize(
    "name",
    [
        b"",
        b"/",
        b"/a",
        b"//a",
        b".//a",
        b"..",
        b"../a",
        b"./../a",
        b"a/..",
        b"a/../b",
        b"a/./b",
        b"a//b",
        b"a//",
        b".wh.",
        b"d/.wh.",
        b".wh..",
        b".wh...",
        b"d/.wh...",
        b".wh..wh.",
        b".wh..wh.plnk",
        b".wh..wh..opq/a",
        b".wh.a/b",
        b"a" * 256,
        b"d/" + b"a" * 256 + b"/b",
    ],
)
def test_a_name_that_leads_elsewhere_or_is_reserved_is_refused(name: bytes) -> None:
    with pytest.raises(ImageError, match=r"^layer: [^\n]{1,300}$"):
        layer.parse_name(name)


@given(st.lists(st.sampled_from([b"", b".", b"..", b"a", b".wh.", b".wh..wh..opq"])))
def test_no_name_leads_out(pieces: list[bytes]) -> None:
    place = parsed(b"/".join(pieces))
    if place is not None:
        names = place.parts if isinstance(place, Present) else place.directory
        assert not {b"", b".", b".."} & set(names)
        assert not any(name.startswith(b".wh.") for name in names)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_name_or_refused(name: bytes) -> None:
    place = parsed(name)
    if isinstance(place, Whiteout):
        assert place.name not in {b"", b".", b".."}
        assert b"/" not in place.name


def parsed(name: bytes) -> Place | None:
    try:
        return layer.parse_name(name)
    except ImageError:
        return None


@pytest.mark.parametrize(
    "xattr", [b"user.a", b"trusted.a", b"security.capability", b"system.posix_acl_default"]
)
def test_the_containers_own_attributes_are_carried(xattr: bytes) -> None:
    assert layer.is_carried(xattr)
    layer.check_xattr(xattr, b"value")


@pytest.mark.parametrize("xattr", [b"security.selinux", b"security.ima", b"security.evm"])
def test_the_nodes_labels_are_passed_over(xattr: bytes) -> None:
    assert not layer.is_carried(xattr)
    layer.check_xattr(xattr, b"value")


@pytest.mark.parametrize(
    ("xattr", "value"),
    [
        (b"trusted.overlay.redirect", b"/etc"),
        (b"trusted.overlay.opaque", b"y"),
        (b"trusted.overlay.", b""),
        (b"system.nfs4_acl", b""),
        (b"other", b""),
        (b"", b""),
        (b"user." + b"a" * 251, b""),
        (b"user.a\0b", b""),
        (b"user.a", bytes((1 << 16) + 1)),
    ],
)
def test_other_attributes_are_refused(xattr: bytes, value: bytes) -> None:
    assert not layer.is_carried(xattr) or xattr.startswith(b"user.")
    with pytest.raises(ImageError, match=r"^layer: attribute [^\n]+$"):
        layer.check_xattr(xattr, value)
