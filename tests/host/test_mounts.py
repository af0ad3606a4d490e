"""Mount options as containerd's snapshotters write them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grit_runtime.errors import InvalidArgumentError
from grit_runtime.host import id_maps, mounts
from grit_runtime.host.mounts import Mount

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


def test_users_are_mapped_by_ranges_alone() -> None:
    assert id_maps.decode("0:65536:1,1:7:2", "0:5:6") == ("0 65536 1\n1 7 2\n", "0 5 6\n")
    for wrong in ("0:1", "0:1:-2", "a:b:c", "0:1:2,", "0 1 2"):
        with pytest.raises(InvalidArgumentError, match=r"gidmap=.*expected INSIDE:OUTSIDE:LENGTH"):
            id_maps.decode("0:1:2", wrong)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
@pytest.mark.parametrize(
    ("options", "owner"),
    [
        ([], 0),
        (["uidmap=0:65536:9"], 0),
        (["uidmap=0:65536:9", "gidmap=0:65536:9"], 65536),
        (["bind", "uidmap=0:65536:9", "gidmap=0:65536:9"], 65536),
        (["bind", "ro", "uidmap=0:65536:9", "gidmap=0:65536:9"], 0),
    ],
)
def test_what_is_mounted_belongs_to_whom_the_options_say(
    tmp_path: Path, options: list[str], owner: int
) -> None:
    source, place = tmp_path / "source", tmp_path / "place"
    source.mkdir()
    place.mkdir()
    mounts.mount(Mount("tmpfs", "tmpfs", "", []), str(source))
    try:
        mounts.mount(Mount("tmpfs", str(source), "", options), str(place))
        status = place.stat()
        assert (status.st_uid, status.st_gid) == (owner, owner)
    finally:
        mounts.unmount_all(str(place))
        mounts.unmount_all(str(source))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
@pytest.mark.parametrize("count", [1, 2, 150])
def test_lower_directories_are_mapped_and_the_upper_one_is_not(tmp_path: Path, count: int) -> None:
    """150 of them are named by more than a page of options."""
    stage, place = tmp_path / "stage", tmp_path / "place"
    stage.mkdir()
    place.mkdir()
    mounts.mount(Mount("tmpfs", "tmpfs", "", []), str(stage))
    lowers = [stage / f"{number}/fs" for number in range(count)]
    for number, lower in enumerate(lowers):
        lower.mkdir(parents=True)
        (lower / f"file-{number}").touch()
    upper, work = stage / "upper", stage / "work"
    upper.mkdir()
    work.mkdir()
    os.chown(upper, 65536, 65536)
    options = [
        *(f"lowerdir={':'.join(map(str, lowers))}", f"upperdir={upper}", f"workdir={work}"),
        *("uidmap=0:65536:65536", "gidmap=0:65536:65536"),
    ]
    try:
        mounts.mount(Mount("overlay", "overlay", "", options), str(place))
        assert place.stat().st_uid == 65536
        owners = {path.stat().st_uid for path in place.iterdir()}
        assert owners == {65536}
        assert len(list(place.iterdir())) == count
    finally:
        mounts.unmount_all(str(place))
        mounts.unmount_all(str(stage))
    assert not list(Path("/run/grit").glob("lowers-*"))
