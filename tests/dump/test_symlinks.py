"""Names of a dump's files that lead through links, in each kind of mount."""

from __future__ import annotations

import os

import pytest

from grit_runtime.dump import symlinks
from grit_runtime.errors import PrivilegeError
from grit_runtime.model.dump import Dump
from grit_runtime.model.live_pod import LivePod
from grit_runtime.model.mount_plan import LiveMount
from grit_runtime.proto import criu_pb2 as criu

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path


def mount(place: str, fstype: int, *, dev: int, key: str | None = None) -> criu.mnt_entry:
    entry = criu.mnt_entry(
        fstype=fstype, mnt_id=dev, root_dev=dev, parent_mnt_id=1, flags=0, root=b"/"
    )
    entry.mountpoint, entry.source, entry.options = place.encode(), b"none", b""
    if key is not None:
        entry.ext_key = key.encode()
    return entry


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """A root with a link, and beside it a volume with one."""
    for directory in ("rootfs/usr/lib", "rootfs/data", "volume/sub"):
        (tmp_path / directory).mkdir(parents=True)
    (tmp_path / "rootfs/lib").symlink_to("usr/lib")
    (tmp_path / "volume/out").symlink_to("/proc/self/fd/1020")
    return tmp_path / "rootfs"


def opened(name: str, *, flags: int = 0) -> criu.file_entry:
    reg = criu.reg_file_entry(id=7, flags=flags, pos=0, name=os.fsencode(name))
    return criu.file_entry(type=1, id=7, reg=reg)


def watching(**fields: bytes) -> criu.file_entry:
    watch = criu.inotify_wd_entry(
        id=7, i_ino=5, f_handle=criu.fh_entry(handle_bytes=8, type=1, **fields)
    )
    return criu.file_entry(type=8, id=7, ify=criu.inotify_file_entry(id=7, wd=[watch]))


def check(rootfs: Path, file: criu.file_entry, *more: criu.mnt_entry) -> None:
    mounts = (
        mount("/", 17, dev=1),
        mount("/proc", 1, dev=2),
        mount("/dev", 5, dev=3),
        mount("/data", 0, dev=4, key="/data"),
        mount("/dev/shm", 5, dev=5, key="/dev/shm"),  # noqa: S108
        *more,
    )
    volume = str(rootfs.with_name("volume"))
    binds = (
        LiveMount("/data", volume, "bind", ()),
        LiveMount("/dev/shm", volume, "bind", ()),  # noqa: S108
    )
    dump = Dump(
        names=(),
        inventory=criu.inventory_entry(),
        tasks=(),
        cores={},
        ids={},
        mounts=mounts,
        files=(file, criu.file_entry(type=2, id=8)),
        devices=(),
        links={"tmpfs-dev-3.tar.gz.img": frozenset({b"fd", b"deep/\xff"})},
        seccomp=None,
        userns=None,
        apparmor=None,
        remaps=(),
        cgroup=None,
    )
    symlinks.check(str(rootfs), dump, LivePod({}, binds, frozenset(), frozenset()))


@pytest.mark.parametrize(
    ("name", "link"),
    [
        ("/lib/x", "/lib"),
        ("lib/../etc", "/lib"),
        ("/lib", "/lib"),
        ("/data/out/etc/shadow", "/data/out"),
        ("/data/out", "/data/out"),
        ("/dev/fd/1020", "/dev/fd"),
        ("/dev/deep/\udcff/x", "/dev/deep/"),
        ("/dev/shm/out", "/dev/shm/out"),  # noqa: S108
        ("/proc/self/status", "/proc/self"),
        ("/proc/1/root/etc", "/proc/1/root"),
        ("/proc/1/task/1/cwd/x", "/proc/1/task/1/cwd"),
        ("/proc/1/fd/1020", "/proc/1/fd/1020"),
        ("/proc/1/map_files/a-b", "/proc/1/map_files/a-b"),
        ("/proc/1/task/1/fd/3", "/proc/1/task/1/fd/3"),
        ("/proc/thread-self/ns/net", "/proc/thread-self"),
        ("/proc/mounts", "/proc/mounts"),
        ("/proc/net/dev", "/proc/net"),
    ],
)
def test_a_name_through_a_link_is_refused(rootfs: Path, name: str, link: str) -> None:
    with pytest.raises(PrivilegeError, match=rf"^file 7: .* leads through the link {link}"):
        check(rootfs, opened(name))


@pytest.mark.parametrize(
    "name",
    [
        "/",
        "/usr/lib/x",
        "/usr/lib/deleted/since",
        "/data/sub/file",
        "/data",
        "/dev/fdx",
        "/dev/pts/0",
        "/proc/stat",
        "/proc/1/fd",
        "/proc/7/task/9/status",
        "/proc/7/mounts",
        "/proc/7/net",
        "/proc/7/net/dev",
        "/proc/7/task/9/net/dev",
        "/proc/7/task/9/fd",
        "/proc/sys/kernel/pid_max",
    ],
)
def test_a_name_as_the_kernel_gives_it_is_taken(rootfs: Path, name: str) -> None:
    check(rootfs, opened(name))


def test_a_link_that_was_opened_itself_is_taken(rootfs: Path) -> None:
    check(rootfs, opened("/data/out", flags=os.O_NOFOLLOW))
    with pytest.raises(PrivilegeError):
        check(rootfs, opened("/data/out/x", flags=os.O_NOFOLLOW))


def test_what_is_watched_is_held_to_the_same(rootfs: Path) -> None:
    check(rootfs, watching(path=b"/data/sub"))
    with pytest.raises(PrivilegeError, match=r"^file 7: .* leads through the link /data/out"):
        check(rootfs, watching(path=b"/data/out/etc"))
    with pytest.raises(PrivilegeError, match=r"^file 7: watches inode 5 by its handle"):
        check(rootfs, watching())


def part(of: criu.mnt_entry, root: str) -> criu.mnt_entry:
    entry = criu.mnt_entry()
    entry.CopyFrom(of)
    entry.mountpoint, entry.root, entry.mnt_id = b"/x", root.encode(), 99
    return entry


def test_a_part_of_the_root_or_of_a_tmpfs_is_not_shown_through_a_link(rootfs: Path) -> None:
    root, dev = mount("/", 17, dev=1), mount("/dev", 5, dev=3)
    file = opened("/usr")
    for base, inside in ((root, "/usr/lib"), (root, "/"), (dev, "/deep"), (dev, "/")):
        check(rootfs, file, part(base, inside))
    for base, inside in ((root, "/lib"), (root, "/lib/x"), (dev, "/fd"), (dev, "/fd/7/etc")):
        with pytest.raises(PrivilegeError, match=f"^mount /x: shows {inside}, which leads through"):
            check(rootfs, file, part(base, inside))
