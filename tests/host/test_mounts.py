"""Mount options as containerd's snapshotters write them."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.host import mounts

# sys/mount.h
RDONLY, NOSUID, NODEV, BIND, REC, RELATIME = 1, 2, 4, 4096, 16384, 1 << 21

PARTS = st.text("abcdefgh0123456789-", min_size=1, max_size=12)
PATHS = st.lists(PARTS, min_size=1, max_size=4).map(lambda parts: "/top/" + "/".join(parts))


@pytest.mark.parametrize(
    ("options", "flags", "data"),
    [
        ([], 0, []),
        (["ro", "nosuid", "nodev"], RDONLY | NOSUID | NODEV, []),
        (["rbind", "rw"], BIND | REC, []),
        (["ro", "rw"], 0, []),
        (["rw", "ro"], RDONLY, []),
        (["defaults", "relatime"], RELATIME, []),
        (["lowerdir=/a:/b", "index=off"], 0, ["lowerdir=/a:/b", "index=off"]),
    ],
)
def test_options_are_flags_or_data(options: list[str], flags: int, data: list[str]) -> None:
    assert mounts._parsed(options) == (flags, data)


@given(st.lists(PATHS, min_size=1, max_size=8, unique=True))
def test_shortened_layers_are_the_same_from_where_the_mount_is_made(paths: list[str]) -> None:
    data = ["index=off", f"lowerdir={':'.join(paths)}", "upperdir=/u"]
    directory, (index, lower, upper) = mounts._shortened(data)
    assert (index, upper) == ("index=off", "upperdir=/u")
    near = lower.removeprefix("lowerdir=").split(":")
    assert [os.path.normpath(f"{directory}/{path}") for path in near] == paths


def test_unmounting_where_nothing_is_mounted_is_no_error() -> None:
    mounts.unmount_all("/no/such/directory")
