"""The check of a dump's own mounts, on those of real dumps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from grit_runtime.errors import PrivilegeError
from grit_runtime.model import mount_check, mount_plan
from grit_runtime.model.mount_plan import LiveMount
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image

if TYPE_CHECKING:
    from collections.abc import Callable

GOLDENS = Path(__file__).parent.parent / "goldens" / "criu-4.2"
EXPOSED = frozenset({"/proc/acpi", "/proc/keys", "/proc/sys", "/sys/firmware"})
Mounts = dict[str, criu.mnt_entry]


def mounts(container: str = "root") -> Mounts:
    path = next((GOLDENS / container).glob("mountpoints-*.img"))
    image = criu_image.parse(path.read_bytes(), name=path.name)
    return {m.mountpoint.decode(): m for m in criu_image.entries(image, criu.mnt_entry)}


def check(
    entries: list[criu.mnt_entry], container: str = "root", *, is_admin: bool = False
) -> None:
    spec = json.loads((GOLDENS / container / "config.json").read_text())
    live = mount_plan.live_mounts(spec, lambda path: path.replace("/var/run/", "/run/"))
    mount_check.check(entries, spec, live, EXPOSED, is_admin=is_admin)


def own(place: str, fstype: int, *, above: int = 102, **fields: Any) -> criu.mnt_entry:
    """A mount of the dump's own; 102 is the golden's root."""
    entry = criu.mnt_entry(
        fstype=fstype,
        mnt_id=900,
        root_dev=900,
        parent_mnt_id=above,
        flags=0,
        root=b"/",
        mountpoint=place.encode(),
        source=b"x",
        options=b"",
    )
    entry.MergeFrom(criu.mnt_entry(**fields))
    return entry


@pytest.mark.parametrize("container", ["root", "user", "tty"])
def test_the_mounts_that_runc_made_are_those_of_the_pod(container: str) -> None:
    check(list(mounts(container).values()), container)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param("/sys", id="a file system of the container's own"),
        pytest.param("/proc/sys", id="a read-only path"),
        pytest.param("/run/secrets/kubernetes.io/serviceaccount", id="a read-only volume"),
        pytest.param("/sys/fs/cgroup/memory", id="a cgroup hierarchy"),
    ],
)
def test_what_the_pod_has_read_only_must_have_been_so(place: str) -> None:
    dump = mounts()
    dump[place].flags &= ~1
    with pytest.raises(PrivilegeError, match=f"^mount {place}: is not ro in the checkpoint"):
        check(list(dump.values()))


def test_a_root_that_the_pod_has_read_only_must_have_been_so() -> None:
    dump = mounts("user")
    dump["/"].flags &= ~1
    with pytest.raises(PrivilegeError, match=r"^mount /: is not ro in the checkpoint"):
        check(list(dump.values()), "user")


@pytest.mark.parametrize(("place", "option"), [("/proc", "nosuid"), ("/proc", "nodev")])
def test_flags_that_the_pod_sets_must_have_been_set(place: str, option: str) -> None:
    dump = mounts()
    dump[place].flags &= ~{"nosuid": 2, "nodev": 4}[option]
    with pytest.raises(PrivilegeError, match=f"^mount {place}: is not {option} in the checkpoint"):
        check(list(dump.values()))


@pytest.mark.parametrize("place", sorted(EXPOSED))
def test_what_the_pod_masks_must_have_been_masked(place: str) -> None:
    dump = mounts()
    del dump[place]
    with pytest.raises(PrivilegeError, match=f"^the dump leaves {place} open, which the pod masks"):
        check(list(dump.values()))


@pytest.mark.parametrize(
    "fstype", [0, 3, 4, 7, 8, 9, 10, 11, 13, 15, 16, 17, 18, 19, 20, 99], ids=str
)
@pytest.mark.parametrize("is_admin", [False, True], ids=["plain", "with CAP_SYS_ADMIN"])
def test_a_file_system_that_reaches_the_node_is_refused_to_anyone(
    fstype: int, *, is_admin: bool
) -> None:
    with pytest.raises(PrivilegeError, match=f"^mount /x: file system type {fstype} of the check"):
        check([*mounts().values(), own("/x", fstype)], is_admin=is_admin)


@pytest.mark.parametrize("fstype", [1, 2, 6, 12, 14, 23])
def test_a_file_system_where_the_pod_has_none_needs_the_capability_to_mount(fstype: int) -> None:
    entries = [*mounts().values(), own("/x", fstype)]
    with pytest.raises(PrivilegeError, match=f"^mount /x: file system type {fstype} is not what"):
        check(entries)
    check(entries, is_admin=True)


def test_a_tmpfs_is_as_harmless_as_a_directory() -> None:
    check([*mounts().values(), own("/x", 5)])


def with_plugin(dump: Mounts) -> None:
    dump["/data"].with_plugin = True


def with_dots(dump: Mounts) -> None:
    dump["/data"].mountpoint = b"/proc/../x"


def with_relative_path(dump: Mounts) -> None:
    dump["/data"].mountpoint = b"data"


def with_root_from_outside(dump: Mounts) -> None:
    dump["/"].ext_key = b"/data"


def without_root(dump: Mounts) -> None:
    del dump["/"]


def with_second_root(dump: Mounts) -> None:
    dump["/x"] = own("/", 17)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (with_plugin, "mount /data: asks for a CRIU plugin"),
        (with_dots, r"mount /proc/\.\./x: expected an absolute path without '\.\.'"),
        (with_relative_path, "mount data: expected an absolute path"),
        (with_root_from_outside, "mount /: has the key /data"),
        (without_root, "the dump has 0 root mounts"),
        (with_second_root, "the dump has 2 root mounts"),
    ],
)
@pytest.mark.parametrize("is_admin", [False, True], ids=["plain", "with CAP_SYS_ADMIN"])
def test_a_tree_that_criu_could_misread_is_refused_to_anyone(
    change: Callable[[Mounts], None], reason: str, *, is_admin: bool
) -> None:
    dump = mounts()
    change(dump)
    with pytest.raises(PrivilegeError, match=f"^{reason}"):
        check(list(dump.values()), is_admin=is_admin)


def proc_over_its_masks(dump: Mounts) -> None:
    dump["x"] = own("/proc", 1, flags=0xE)


def mask_under_proc(dump: Mounts) -> None:
    dump["/proc/keys"].parent_mnt_id = dump["/"].mnt_id


def two_of_one_id(dump: Mounts) -> None:
    dump["/data"].mnt_id = dump["/proc"].mnt_id


def proc_in_place_of_its_directory(dump: Mounts) -> None:
    dump["/proc/sys"].root = b"/"


def another_proc_for_a_directory(dump: Mounts) -> None:
    dump["/proc/sys"].root_dev += 1


def another_kind_for_a_directory(dump: Mounts) -> None:
    dump["/proc/sys"].fstype = 2


def part_of_a_volume(dump: Mounts) -> None:
    volume = dump["/run/secrets/kubernetes.io/serviceaccount"]
    dump["x"] = own("/x", 5, root=volume.root, root_dev=volume.root_dev)


def whole_volume(dump: Mounts) -> None:
    dump["/data"].root = b"/"
    dump["x"] = own("/x", 5, root_dev=dump["/data"].root_dev)


def proc_in_place_of_queues(dump: Mounts) -> None:
    dump["/dev/mqueue"].fstype = 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (proc_over_its_masks, "mount /proc: the place or the id 900 is another mount's too"),
        (mask_under_proc, "mount /proc/keys: lies on mount 102, expected 104, the one at /proc"),
        (two_of_one_id, "mount .*: the place or the id 104 is another mount's too"),
        (
            proc_in_place_of_its_directory,
            "mount /proc/sys: shows / of another place, expected /sys",
        ),
        (another_proc_for_a_directory, "mount /proc/sys: shows /sys of another place"),
        (another_kind_for_a_directory, "mount /proc/sys: shows /sys of another place"),
        (part_of_a_volume, "mount /x: shows .*/token of another mount"),
        (whole_volume, "mount /x: shows / of another mount"),
        (proc_in_place_of_queues, "mount /dev/mqueue: file system type 1 is not what the pod has"),
    ],
)
def test_a_tree_that_shows_more_than_the_pods_is_refused(
    change: Callable[[Mounts], None], reason: str
) -> None:
    dump = mounts()
    change(dump)
    with pytest.raises(PrivilegeError, match=f"^{reason}"):
        check(list(dump.values()))


def test_a_volume_remapped_from_another_key_is_held_against_the_mount_at_its_place() -> None:
    dump = mounts()
    token = dump["/run/secrets/kubernetes.io/serviceaccount"]
    token.ext_key = b"old-name"
    check(list(dump.values()))
    token.flags &= ~1
    with pytest.raises(PrivilegeError, match=r"serviceaccount: is not ro in the checkpoint"):
        check(list(dump.values()))


@pytest.mark.parametrize("other_key", [b"/data", b"/etc/hosts"])
def test_a_read_only_volume_that_borrows_a_writable_ones_key_must_have_been_read_only(
    other_key: bytes,
) -> None:
    dump = mounts()
    token = dump["/run/secrets/kubernetes.io/serviceaccount"]
    token.ext_key = other_key
    token.flags &= ~1
    with pytest.raises(PrivilegeError, match=r"serviceaccount: is not ro in the checkpoint"):
        check(list(dump.values()))


def test_a_file_is_masked_by_the_null_of_the_containers_own_dev_and_no_other() -> None:
    dump = mounts()
    mask = dump["/proc/keys"]
    mask.ClearField("ext_key")
    mask.fstype, mask.root, mask.root_dev = 5, b"/null", dump["/dev"].root_dev
    check(list(dump.values()))
    mask.root_dev += 1
    with pytest.raises(PrivilegeError, match=r"^mount /proc/keys: shows /null of another mount"):
        check(list(dump.values()))


def test_a_recursively_read_only_mount_is_read_only() -> None:
    live = [LiveMount("/v", "/s", "bind", ("rbind", "rro"))]
    root = own("/", 17, above=0)
    volume = own("/v", 5, above=900, mnt_id=901, ext_key=b"/v")
    spec: dict[str, Any] = {"root": {}, "linux": {}}
    with pytest.raises(PrivilegeError, match=r"^mount /v: is not rro in the checkpoint"):
        mount_check.check([root, volume], spec, live, frozenset(), is_admin=False)


def bound(root: bytes, **fields: Any) -> criu.mnt_entry:
    """A mount of a part of the container's own root."""
    base = mounts()["/"]
    same = {name: getattr(base, name) for name in ("fstype", "root_dev", "source", "options")}
    return own("/x", **{**same, "root": root, **fields})


@pytest.mark.parametrize("root", [b"/", b"/a/b"])
def test_a_part_of_the_root_is_for_a_container_that_may_mount(root: bytes) -> None:
    entries = [*mounts().values(), bound(root)]
    check(entries, is_admin=True)
    with pytest.raises(PrivilegeError, match=r"^mount /x: file system type"):
        check(entries)


@pytest.mark.parametrize(
    "fields",
    [
        {"root": b"/a/../.."},
        {"root_dev": 901},
        {"options": b"lowerdir=/"},
        {"source": b"/dev/vda"},
        {"fstype": 9},
    ],
    ids=str,
)
def test_what_criu_would_not_bind_from_the_root_is_no_part_of_it(fields: dict[str, Any]) -> None:
    entry = bound(**{"root": b"/", **fields})
    with pytest.raises(PrivilegeError, match=r"^mount /x: file system type"):
        check([*mounts().values(), entry], is_admin=True)
