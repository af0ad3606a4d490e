"""rw layers saved and applied: real overlays there and back, hostile layers refused."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import socket
import stat
import struct
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grit_runtime.errors import FailedPreconditionError, GritError, ImageError, PrivilegeError
from grit_runtime.files import layer_apply, layer_save, room
from grit_runtime.host import overlay
from grit_runtime.wire import tar
from grit_runtime.wire.layer import DEFAULT_LIMITS, OPAQUE, Limits
from grit_runtime.wire.tar import Member
from tests.host.overlays import mount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Set

    from grit_runtime.files.layer_apply import Device

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root to mount overlays and make devices"
)
PACKINGS = [bytes, gzip.compress]
packings = pytest.mark.parametrize("packed", PACKINGS, ids=["plain", "gzip"])

needs_tar = pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")

TIME_NS = 1_700_000_000_123_456_789


def member(
    name: bytes,
    kind: str = tar.FILE,
    *,
    mode: int = 0o644,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    size_bytes: int = 0,
    xattrs: dict[bytes, bytes] | None = None,
) -> Member:
    """A member that the caller owns, so that others than root can apply it."""
    owner = os.geteuid(), os.getegid()
    return Member(name, kind, mode, *owner, TIME_NS, xattrs or {}, size_bytes, link, device)


def file(name: bytes, data: bytes = b"") -> tuple[Member, bytes]:
    return member(name, size_bytes=len(data)), data


def directory(name: bytes) -> Member:
    return member(name, tar.DIRECTORY, mode=0o755)


def symlink(name: bytes, target: bytes) -> Member:
    return member(name, tar.SYMLINK, mode=0o777, link=target)


def hard_link(name: bytes, target: bytes) -> Member:
    return member(name, tar.HARD_LINK, link=target)


def archive(*parts: Member | tuple[Member, bytes]) -> bytes:
    """A whole layer; a file with data comes as (member, data)."""
    out = io.BytesIO()
    for part in parts:
        head, data = (part, b"") if isinstance(part, Member) else part
        out.write(tar.encode(head) + data + bytes(tar.padding(len(data))))
    return out.getvalue() + tar.END


def apply(
    path: Path,
    root: Path,
    *,
    allowed_devices: Set[Device] = frozenset(),
    limits: Limits = DEFAULT_LIMITS,
) -> None:
    layer_fd = os.open(path, os.O_RDONLY)
    root_fd = os.open(root, os.O_RDONLY)
    try:
        layer_apply.apply(layer_fd, root_fd, allowed_devices=allowed_devices, limits=limits)
    finally:
        os.close(layer_fd)
        os.close(root_fd)


def save(upper: Path, path: Path, *, limits: Limits = DEFAULT_LIMITS) -> None:
    upper_fd = os.open(upper, os.O_RDONLY)
    try:
        with path.open("xb") as out:
            layer_save.save(upper_fd, out.fileno(), limits=limits)
    finally:
        os.close(upper_fd)


class Node(NamedTuple):
    """All that a restored file must have in common with the saved one."""

    kind: int
    mode: int
    owner: tuple[int, int]
    device: int
    mtime_ns: int
    content: bytes
    xattrs: dict[str, bytes]
    same_file: tuple[bytes, ...]  # the other names of the same inode


def tree(root: Path) -> dict[bytes, Node]:
    """Everything beneath *root*, itself included, without how an overlay stores it."""
    top = os.fsencode(root)
    paths = [top]
    for directory, names, files in os.walk(top):
        paths += [os.path.join(directory, name) for name in names + files]
    statuses = {path: os.lstat(path) for path in paths}
    inodes: dict[tuple[int, int], list[bytes]] = {}
    for path, status in statuses.items():
        if stat.S_ISREG(status.st_mode):
            inodes.setdefault((status.st_dev, status.st_ino), []).append(path[len(top) :])
    return {
        path[len(top) :]: Node(
            stat.S_IFMT(status.st_mode),
            stat.S_IMODE(status.st_mode),
            (status.st_uid, status.st_gid),
            status.st_rdev,
            status.st_mtime_ns,
            _content(path, status.st_mode),
            _xattrs(path),
            tuple(sorted(inodes.get((status.st_dev, status.st_ino), []))),
        )
        for path, status in statuses.items()
    }


def _content(path: bytes, mode: int) -> bytes:
    if stat.S_ISLNK(mode):
        return os.readlink(path)
    if not stat.S_ISREG(mode):
        return b""
    with open(path, "rb") as opened:
        return opened.read()


def _xattrs(path: bytes) -> dict[str, bytes]:
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
        if not name.startswith("trusted.overlay.")
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root filesystem with something of each kind, next to a secret."""
    path = tmp_path / "root"
    (path / "etc").mkdir(parents=True)
    (path / "etc" / "passwd").write_text("root")
    (path / "old").write_text("old")
    (path / "out").symlink_to("../outside")
    (path / "absolute").symlink_to(tmp_path / "outside")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    return path


def apply_bytes(
    root: Path,
    data: bytes,
    *,
    allowed_devices: Set[Device] = frozenset(),
    limits: Limits = DEFAULT_LIMITS,
) -> None:
    path = root.parent / "layer"
    path.write_bytes(data)
    apply(path, root, allowed_devices=allowed_devices, limits=limits)


class Overlay:
    """Overlays of one lower directory, each with an upper directory of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lower = path / "lower"
        self.lower.mkdir()
        self.mounted: list[Path] = []

    def mount(self) -> tuple[Path, Path]:
        """A fresh merged directory, and its upper one."""
        top = self.path / f"mount{len(self.mounted)}"
        upper, work, merged = top / "upper", top / "work", top / "merged"
        for directory in (upper, work, merged):
            directory.mkdir(parents=True)
        mount(self.lower, upper, work, merged)
        self.mounted.append(merged)
        return merged, upper

    def unmount(self) -> None:
        for merged in self.mounted:
            overlay.unmount(str(merged))


@pytest.fixture
def overlays(tmp_path: Path) -> Iterator[Overlay]:
    made = Overlay(tmp_path)
    yield made
    made.unmount()


def make_lower(lower: Path) -> None:
    for name in ("keep", "gone", "emptied/a/b", "replaced", "linked", "attributes", "becomes-file"):
        (lower / name).mkdir(parents=True)
        (lower / name / "file").write_text(name)
    for name in ("removed", "changed", "renamed", "becomes-dir", "touched", "late-link"):
        (lower / name).write_text(name)
    os.link(lower / "linked" / "file", lower / "linked" / "other")
    os.symlink("keep", lower / "becomes-directory")
    os.setxattr(lower / "touched", "user.old", b"old")
    os.setxattr(lower / "attributes", "user.old", b"old")
    os.setxattr(lower / "attributes", "system.posix_acl_default", ACL)


NOBODY = (1 << 32) - 1
# struct posix_acl_xattr_header: user::rwx, user:7:r--, group::r-x, mask::r-x, other::---
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, rights, number)
    for tag, rights, number in [(1, 7, NOBODY), (2, 4, 7), (4, 5, NOBODY), (16, 5, NOBODY)]
)
ACL += struct.pack("<HHI", 32, 0, NOBODY)
# struct vfs_cap_data, revision 2, effective: cap_net_raw
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


def change_everything(merged: Path) -> None:
    """What a container can do to its root filesystem, one of each."""
    (merged / "removed").unlink()
    shutil.rmtree(merged / "gone")
    shutil.rmtree(merged / "emptied" / "a")
    shutil.rmtree(merged / "replaced")
    (merged / "replaced").mkdir(0o2750)
    (merged / "replaced" / "new").write_text("new")
    shutil.rmtree(merged / "becomes-file")
    (merged / "becomes-file").write_text("file")
    (merged / "becomes-dir").unlink()
    (merged / "becomes-dir" / "in" / "it").mkdir(parents=True)
    (merged / "becomes-directory").unlink()
    (merged / "becomes-directory").mkdir()
    (merged / "becomes-directory" / "file").write_text("x")
    (merged / "renamed").rename(merged / "keep" / "renamed")
    (merged / "changed").write_text("changed")
    (merged / "touched").chmod(0o4711)
    os.chown(merged / "touched", 1000, 2000)
    os.removexattr(merged / "touched", "user.old")
    os.link(merged / "late-link", merged / "keep" / "linked-late")
    (merged / "links").mkdir()
    (merged / "links" / "z").write_text("linked")
    os.link(merged / "links" / "z", merged / "links" / "a")
    os.link(merged / "links" / "z", merged / "first")
    change_attributes(merged)
    make_special_files(merged)
    (merged / "sparse").touch()
    os.truncate(merged / "sparse", 20 << 20)
    with (merged / "sparse").open("r+b") as opened:
        opened.seek(10 << 20)
        opened.write(b"in the middle")
    (merged / ("long" * 40)).write_text("long")
    (merged / ("deep/" * 60) / "end").mkdir(parents=True)
    Path(os.fsdecode(os.fsencode(merged) + b"/\xff\xfe \n\\")).write_text("no utf-8")
    for number, path in enumerate(sorted(merged.rglob("*"))):
        os.utime(path, ns=(0, TIME_NS + number), follow_symlinks=False)
    os.utime(merged / "first", ns=(0, -1))
    merged.chmod(0o711)
    os.utime(merged, ns=(0, TIME_NS))


def change_attributes(merged: Path) -> None:
    directory = merged / "attributes"
    os.removexattr(directory, "user.old")
    os.removexattr(directory, "system.posix_acl_default")
    (directory / "plain").write_text("plain")
    os.setxattr(directory, "system.posix_acl_default", ACL)
    os.setxattr(directory, "user.new", bytes(range(256)))
    os.setxattr(directory / "file", "system.posix_acl_access", ACL)
    os.setxattr(directory / "file", "security.capability", CAPABILITY)
    os.setxattr(directory / "file", "trusted.own", b"a=b\n")
    os.setxattr(directory / "file", "user.empty", b"")


def bind_socket(directory: Path) -> None:
    """Leave the file of a unix socket; the directory's path may be longer than a socket's name."""
    directory_fd = os.open(directory, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{directory_fd}/socket")
    os.close(directory_fd)


def make_special_files(merged: Path) -> None:
    os.mkfifo(merged / "fifo")
    (merged / "fifo").chmod(0o621)
    os.mknod(merged / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(merged / "loop", stat.S_IFBLK | 0o660, os.makedev(7, 300))
    os.chown(merged / "loop", 0, 6)
    os.symlink("/etc/shadow", merged / "absolute-link")
    os.chown(merged / "absolute-link", 3_000_000, 4_000_000, follow_symlinks=False)
    os.setxattr(merged / "absolute-link", "trusted.own", b"x", follow_symlinks=False)
    os.symlink("x/" * 150, merged / "long-link")
    bind_socket(merged)


DEVICES = {("c", 1, 3), ("b", 7, 300)}


@needs_root
def test_what_a_container_changed_comes_back_on_a_fresh_root(overlays: Overlay) -> None:
    make_lower(overlays.lower)
    merged, upper = overlays.mount()
    change_everything(merged)
    save(upper, overlays.path / "layer.tar")
    assert (overlays.path / "layer.tar").stat().st_blocks * 512 < 1 << 20  # holes stay holes

    fresh, fresh_upper = overlays.mount()
    apply(overlays.path / "layer.tar", fresh, allowed_devices=DEVICES)
    assert tree(fresh) == tree(merged)
    assert (fresh / "sparse").stat().st_blocks * 512 < 1 << 20

    save(fresh_upper, overlays.path / "again.tar")
    third, _ = overlays.mount()
    apply(overlays.path / "again.tar", third, allowed_devices=DEVICES)
    assert tree(third) == tree(merged)


NAMES = ["a", "b", "a/a", "a/b", "b/a", "a/a/a"]
changes = st.tuples(
    st.sampled_from(["write", "mkdir", "remove", "rename", "link", "symlink", "chmod", "xattr"]),
    st.sampled_from(NAMES),
    st.sampled_from(NAMES),
)


def change(top: Path, what: str, name: str, other: str) -> None:
    """One change of a tree; where there is nothing to change it is no change."""
    path, second = top / name, top / other
    try:
        match what:
            case "write":
                path.write_text(f"{what} {name} {other}")
            case "mkdir":
                path.mkdir()
            case "remove":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            case "rename":
                path.rename(second)
            case "link":
                os.link(path, second, follow_symlinks=False)
            case "symlink":
                second.symlink_to(name)
            case "chmod":
                path.chmod(0o7000 | len(other))
            case _:
                os.setxattr(path, f"user.{other}", os.fsencode(name))
    except OSError:
        return


@needs_root
@settings(max_examples=40, deadline=None)
@given(st.lists(changes, max_size=8), st.lists(changes, max_size=12))
def test_any_changes_come_back(
    before: list[tuple[str, str, str]], after: list[tuple[str, str, str]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        made = Overlay(Path(directory))
        try:
            for step in before:
                change(made.lower, *step)
            merged, upper = made.mount()
            for step in after:
                change(merged, *step)
            save(upper, made.path / "layer.tar")
            fresh, _ = made.mount()
            apply(made.path / "layer.tar", fresh)
            assert tree(fresh) == tree(merged)
        finally:
            made.unmount()


@needs_root
@needs_tar
def test_gnu_tar_and_we_read_each_others_archives(overlays: Overlay) -> None:
    merged, _ = overlays.mount()
    make_lower(merged)
    change_everything(merged)
    (merged / "socket").unlink()
    for name in ("theirs", "ours"):
        (overlays.path / name).mkdir()
    options = ["--xattrs", "--xattrs-include=*", "--numeric-owner"]
    theirs = str(overlays.path / "theirs.tar")
    subprocess.run(
        ["tar", *options, "--format=posix", "-C", str(merged), "-cf", theirs, "."], check=True
    )
    apply(overlays.path / "theirs.tar", overlays.path / "ours", allowed_devices=DEVICES)
    save(merged, overlays.path / "ours.tar")
    subprocess.run(
        ["tar", *options, "-C", str(overlays.path / "theirs"), "-xpf", overlays.path / "ours.tar"],
        check=True,
    )
    trees = [tree(overlays.path / name) for name in ("ours", "theirs")]
    assert trees == [tree(merged)] * 2


@packings
def test_a_layer_changes_what_it_names_and_nothing_else(
    root: Path, packed: Callable[[bytes], bytes]
) -> None:
    data = archive(
        directory(b"etc/"),
        member(b"etc/.wh.passwd"),
        file(b"etc/hosts", b"hosts" * 1000),
        symlink(b"etc/link", b"/anywhere"),
        hard_link(b"etc/hard", b"etc/hosts"),
        directory(b"./new"),
        member(b"new/pipe", tar.FIFO, mode=0o640),
    )
    apply_bytes(root, packed(data[:1000]) + packed(data[1000:]))
    found = tree(root)
    assert found.keys() == {
        *(b"", b"/absolute", b"/old", b"/out", b"/etc", b"/etc/hosts", b"/etc/link", b"/etc/hard"),
        *(b"/new", b"/new/pipe"),
    }
    assert found[b"/etc/hosts"].content == b"hosts" * 1000
    assert found[b"/etc/hosts"].same_file == (b"/etc/hard", b"/etc/hosts")
    assert found[b"/etc/link"].content == b"/anywhere"
    assert stat.S_ISFIFO(found[b"/new/pipe"].kind)
    assert found[b"/new/pipe"].mode == 0o640
    assert {found[name].mtime_ns for name in (b"/etc", b"/etc/link", b"/new")} == {TIME_NS}


def test_whiteouts_hide_only_what_was_there_before(root: Path) -> None:
    data = archive(
        directory(b"etc"),
        file(b"etc/new", b"new"),
        member(b"etc/.wh..wh..opq"),
        file(b"old", b"new"),
        member(b".wh.old"),
        member(b".wh.never"),
        directory(b"out"),
        member(b"out/.wh.secret"),
    )
    apply_bytes(root, data)
    found = tree(root)
    assert found.keys() == {b"", b"/absolute", b"/old", b"/out", b"/etc", b"/etc/new"}
    assert found[b"/old"].content == b"new"
    assert (root.parent / "outside" / "secret").read_text() == "secret"


def test_an_opaque_root_starts_from_nothing(root: Path) -> None:
    apply_bytes(root, archive(directory(b"./"), file(b"a"), member(b".wh..wh..opq")))
    assert tree(root).keys() == {b"", b"/a"}
    assert (root.parent / "outside" / "secret").read_text() == "secret"


def test_a_whiteout_of_a_link_removes_the_link(root: Path) -> None:
    apply_bytes(root, archive(member(b".wh.out"), member(b".wh.absolute")))
    assert tree(root).keys() == {b"", b"/etc", b"/etc/passwd", b"/old"}
    assert (root.parent / "outside" / "secret").read_text() == "secret"


def test_of_two_members_with_one_name_the_last_counts(root: Path) -> None:
    data = archive(
        *(file(b"a", b"first"), file(b"a", b"last")),
        *(directory(b"b"), file(b"b/in"), symlink(b"b", b"x")),
        *(symlink(b"c", b"x"), directory(b"c"), file(b"c/in")),
        *(file(b"etc"), directory(b"etc")),
    )
    apply_bytes(root, data)
    found = tree(root)
    assert found[b"/a"].content == b"last"
    assert found[b"/b"].content == b"x"
    assert stat.S_ISDIR(found[b"/c"].kind)
    assert stat.S_ISDIR(found[b"/etc"].kind)
    assert b"/etc/passwd" not in found


def test_attributes_become_exactly_the_layers(root: Path) -> None:
    os.setxattr(root / "etc", "user.old", b"old")
    attributes = {b"user.new": b"new", b"security.selinux": b"another node's"}
    apply_bytes(root, archive(member(b"etc", tar.DIRECTORY, mode=0o700, xattrs=attributes)))
    assert tree(root)[b"/etc"].xattrs == {"user.new": b"new"}


NODE = member(b"d", tar.CHAR_DEVICE, device=(5, 1))
HUGE = tar.encode(member(b"a", size_bytes=1 << 37))

# Refused by the first reading: nothing is changed.
HOSTILE = {
    "an absolute name": archive(file(b"/etc/passwd")),
    "a name that leads up": archive(file(b"../outside/secret")),
    "a name that leads up at its end": archive(directory(b"etc/..")),
    "a name that leads up inside": archive(file(b"etc/../../outside/secret")),
    "an empty name": archive(file(b"a"), file(b"")),
    "a root that is no directory": archive(symlink(b"./", b"/etc")),
    "a whiteout of nothing": archive(member(b".wh.")),
    "a whiteout of the directory": archive(member(b"etc/.wh..")),
    "a whiteout of its parent": archive(member(b"etc/.wh...")),
    "a whiteout of a whiteout": archive(member(b".wh..wh.a")),
    "a file beneath a whiteout": archive(file(b".wh.a/b")),
    "a whiteout with data": archive(file(b".wh.old", b"data")),
    "a whiteout that is a link": archive(symlink(b".wh.old", b"x")),
    "a hard link to an absolute name": archive(hard_link(b"a", b"/etc/passwd")),
    "a hard link that leads up": archive(hard_link(b"a", b"../outside/secret")),
    "a hard link to itself": archive(hard_link(b"old", b"./old")),
    "a hard link beneath itself": archive(hard_link(b"etc", b"etc/passwd")),
    "a hard link to the root": archive(hard_link(b"a", b".")),
    "a hard link to a whiteout": archive(hard_link(b"a", b".wh.old")),
    "a device": archive(NODE),
    "a device of another kind": archive(NODE._replace(kind=tar.BLOCK_DEVICE)),
    "a whiteout as overlayfs has it": archive(NODE._replace(device=(0, 0))),
    "an attribute of overlayfs": archive(member(b"a", xattrs={b"trusted.overlay.redirect": b"/"})),
    "an attribute of no kind": archive(member(b"a", xattrs={b"other": b""})),
    "a huge file": HUGE,
    "a huge file in gzip": gzip.compress(HUGE),
    "a file larger than allowed": tar.encode(member(b"a", size_bytes=1 << 39)),
    "something after its end": archive(file(b"a")) + b"x",
    "zeros without end": gzip.compress(archive(file(b"a")) + bytes(2 << 20)),
    "an empty file": b"",
    "no tar": b"x" * 5000,
    "damaged gzip": gzip.compress(archive(file(b"a")))[:-6] + b"123456",
    "gzip of no tar": gzip.compress(b"x" * 5000),
    "something after gzip": gzip.compress(archive(file(b"a"))) + b"x",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_layer_is_refused_before_anything_is_changed(root: Path, data: bytes) -> None:
    before = tree(root), tree(root.parent / "outside")
    first = archive(file(b"new"))[: -len(tar.END)]
    data = data if data.startswith(b"\x1f\x8b") else first + data
    with pytest.raises((ImageError, PrivilegeError), match=r"^[^\n]{1,400}$"):
        apply_bytes(root, data)
    assert (tree(root), tree(root.parent / "outside")) == before


# Refused where they meet what is there: outside the root nothing is changed.
REACHING = {
    "a file through a link": archive(file(b"out/new")),
    "a file through an absolute link": archive(file(b"absolute/secret")),
    "a directory through a link": archive(directory(b"out/new")),
    "a link through a link": archive(symlink(b"out/new", b"x")),
    "a whiteout through a link": archive(member(b"out/.wh.secret")),
    "an opaque link": archive(member(b"out/.wh..wh..opq")),
    "a hard link through a link": archive(hard_link(b"a", b"out/secret")),
    "a hard link to a link": archive(hard_link(b"a", b"out")),
    "a hard link to a directory": archive(hard_link(b"a", b"etc")),
    "a hard link to nothing": archive(hard_link(b"a", b"none")),
    "a file through its own link": archive(symlink(b"a", b"/"), file(b"a/b")),
    "a file through a link to itself": archive(symlink(b"a", b"."), file(b"a/b")),
    "a link in the place of a directory": archive(
        directory(b"a"), directory(b"a/b"), symlink(b"a", b"../outside")
    ),
    "a file below a file": archive(file(b"old/a")),
    "a file in no directory": archive(file(b"none/a")),
}


@pytest.mark.parametrize("data", REACHING.values(), ids=REACHING)
def test_a_layer_that_reaches_through_links_is_refused(root: Path, data: bytes) -> None:
    outside = tree(root.parent / "outside")
    with pytest.raises((ImageError, FileNotFoundError), match=r"^[^\n]{1,400}$"):
        apply_bytes(root, data)
    assert tree(root.parent / "outside") == outside


@packings
def test_a_layer_cut_anywhere_is_refused_before_anything_is_changed(
    root: Path, packed: Callable[[bytes], bytes]
) -> None:
    data = packed(archive(file(b"a" * 120, b"data" * 200), member(b".wh.old")))
    before = tree(root)
    for end in range(len(data)):
        with pytest.raises(ImageError, match=r"^[^\n]+$"):
            apply_bytes(root, data[:end])
    assert tree(root) == before
    apply_bytes(root, data)
    assert tree(root) != before


@pytest.mark.parametrize("field", Limits._fields)
def test_each_limit_holds_and_can_be_reached(root: Path, field: str) -> None:
    data = archive(file(b"a", b"1234"), member(b"b", xattrs={b"user.c": b"def"}))
    exact = Limits(members=2, data_bytes=4, metadata_bytes=11)
    before = tree(root)
    with pytest.raises(ImageError, match=f"layer: over [0-9]+ {field} at '"):
        apply_bytes(root, data, limits=exact._replace(**{field: getattr(exact, field) - 1}))
    assert tree(root) == before
    apply_bytes(root, data, limits=exact)
    assert tree(root).keys() - before.keys() == {b"/a", b"/b"}


@needs_root
def test_a_listed_device_is_made(root: Path) -> None:
    apply_bytes(root, archive(NODE), allowed_devices={("c", 5, 1)})
    assert tree(root)[b"/d"].device == os.makedev(5, 1)


parts = st.sampled_from([b"a", b"b", b"..", b".", b"out", b"etc", b".wh.a", b".wh.etc", OPAQUE])
names = st.lists(parts, min_size=1, max_size=3).map(b"/".join)
hostile_members = st.one_of(
    names.map(directory),
    st.builds(file, names, st.just(b"overwritten")),
    st.builds(symlink, names, st.sampled_from([b"../outside", b"/", b"etc", b"../outside/secret"])),
    st.builds(hard_link, names, names),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(hostile_members, max_size=8))
def test_no_layer_reaches_out(members: list[Member | tuple[Member, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        root, outside = Path(directory, "root"), Path(directory, "outside")
        root.mkdir()
        outside.mkdir()
        (outside / "secret").write_text("secret")
        os.symlink("../outside", root / "out")
        before = tree(outside)
        outcome(root, archive(*members))
        assert tree(outside) == before


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 5000), st.binary(min_size=1, max_size=4), st.sampled_from(PACKINGS))
def test_damage_is_refused_or_does_no_harm(
    offset: int, damage: bytes, packed: Callable[[bytes], bytes]
) -> None:
    layer = archive(
        directory(b"d"),
        file(b"d/f", b"data"),
        member(b"x" * 150, xattrs={b"user.a": b"b"}),
        hard_link(b"h", b"d/f"),
        member(b".wh.old"),
    )
    data = packed(layer)
    offset %= len(data)
    with tempfile.TemporaryDirectory() as directory_path:
        root = Path(directory_path, "root")
        root.mkdir()
        outcome(root, data[:offset] + damage + data[offset + len(damage) :])


def outcome(root: Path, data: bytes) -> None:
    """Apply *data*, or be refused with one of our errors or the kernel's."""
    try:
        apply_bytes(root, data)
    except (GritError, OSError):
        return


def test_files_of_more_than_8_gib_are_saved_and_applied(tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    (tmp_path / "fresh").mkdir()
    # with three blocks of header each, one ends in a hole, where a page of the tar file ends
    sizes = {f"large{number}": 8 << 30 for number in range(8)}
    for name, size_bytes in sizes.items():
        (tmp_path / "upper" / name).touch()
        os.truncate(tmp_path / "upper" / name, size_bytes)
    save(tmp_path / "upper", tmp_path / "layer.tar")
    apply(tmp_path / "layer.tar", tmp_path / "fresh")
    found = {path.name: path.stat() for path in (tmp_path / "fresh").iterdir()}
    assert {name: status.st_size for name, status in found.items()} == sizes
    assert sum(status.st_blocks for status in found.values()) < 1000


def test_holes_and_second_names_take_no_room(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "data").write_bytes(bytes(range(256)) * 4096)
    (upper / "again").hardlink_to(upper / "data")
    with (upper / "holes").open("wb") as file:
        file.truncate(1 << 37)
    upper_fd = os.open(upper, os.O_RDONLY)
    used_bytes = room.used_bytes(upper_fd)
    assert 1 << 20 <= used_bytes < 2 << 20
    save(upper, tmp_path / "layer.tar")
    room.check_room(used_bytes, upper_fd)
    with pytest.raises(FailedPreconditionError, match=rf"^{1 << 60} bytes to write and \d+ free"):
        room.check_room(1 << 60, upper_fd)
    os.close(upper_fd)
    root = tmp_path / "root"
    root.mkdir()
    apply(tmp_path / "layer.tar", root)
    assert {path.name: path.stat().st_size for path in root.iterdir()} == {
        "data": 1 << 20,
        "again": 1 << 20,
        "holes": 1 << 37,
    }


@pytest.mark.parametrize("field", ["members", "data_bytes"])
def test_saving_stays_within_limits(tmp_path: Path, field: str) -> None:
    upper = tmp_path / "upper"
    (upper / "d").mkdir(parents=True)
    (upper / "d" / "f").write_bytes(b"12345")
    os.link(upper / "d" / "f", upper / "g")
    bind_socket(upper)
    exact = Limits(members=5, data_bytes=5)
    save(upper, tmp_path / "layer", limits=exact)
    with pytest.raises(ImageError, match=f"over 4 {field}"):
        save(upper, tmp_path / "out", limits=exact._replace(**{field: 4}))


@pytest.mark.parametrize(
    ("name", "xattr", "reason"),
    [
        (".wh.a", None, "has a name that means a whiteout"),
        (".wh..wh..opq", None, "has a name that means a whiteout"),
        ("a", "user.a=b", "has an extended attribute with = in its name"),
        pytest.param("a", "trusted.overlay.redirect", "redirect_dir=off", marks=needs_root),
        pytest.param("a", "trusted.overlay.metacopy", "metacopy=off", marks=needs_root),
        pytest.param("a", "trusted.overlay.overlay.opaque", "keep that on", marks=needs_root),
    ],
)
def test_what_a_layer_cannot_say_is_not_saved(
    tmp_path: Path, name: str, xattr: str | None, reason: str
) -> None:
    (tmp_path / "upper" / "d" / name).mkdir(parents=True)
    if xattr:
        os.setxattr(tmp_path / "upper" / "d" / name, xattr, b"value")
    with pytest.raises(FailedPreconditionError, match=f"^rw layer: 'd/{name}' .*{reason}"):
        save(tmp_path / "upper", tmp_path / "layer")


def test_a_name_too_deep_for_a_path_is_not_saved(tmp_path: Path) -> None:
    deep_fd = os.open(tmp_path, os.O_RDONLY)
    for name in ["upper", *["n" * 250] * 17]:
        os.mkdir(name, dir_fd=deep_fd)
        child_fd = os.open(name, os.O_RDONLY, dir_fd=deep_fd)
        os.close(deep_fd)
        deep_fd = child_fd
    os.close(deep_fd)
    with pytest.raises(FailedPreconditionError, match="lies deeper than a path can name"):
        save(tmp_path / "upper", tmp_path / "layer")
    shutil.rmtree(tmp_path / "upper")


@needs_root
def test_whiteouts_of_regular_files_are_saved_as_such(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    (upper / "d").mkdir(parents=True)
    os.setxattr(upper / "d", "trusted.overlay.opaque", b"x")
    (upper / "d" / "old").touch()
    os.setxattr(upper / "d" / "old", "trusted.overlay.whiteout", b"")
    save(upper, tmp_path / "layer")
    root = tmp_path / "root"
    (root / "d").mkdir(parents=True)
    (root / "d" / "old").touch()
    (root / "d" / "kept").touch()
    apply(tmp_path / "layer", root)
    assert tree(root).keys() == {b"", b"/d", b"/d/kept"}


@contextmanager
def on_one_core() -> Iterator[None]:
    """Where no copy of this process would get anything done beside it."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    yield
    os.sched_setaffinity(0, cores)


def make_many(top: Path, number: int = 3000) -> None:
    """So many files that their layer is shared among all cores, with links across all of it."""
    for at in range(number):
        path = top / str(at // 100) / str(at)
        path.parent.mkdir(parents=True, exist_ok=True)
        if at % 50 == 7:
            path.hardlink_to(top / "0" / str(at % 3))
        elif at % 50 == 8:
            path.symlink_to("../0")
        else:
            path.write_bytes(b"%d" % at * (20_000 if at % 500 == 9 else at % 50))
            path.chmod(0o600 | at % 0o200)
        os.utime(path, ns=(0, TIME_NS + at), follow_symlinks=False)


def test_many_files_are_saved_and_put_back_by_all_cores_as_by_one(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    make_many(upper)
    save(upper, tmp_path / "shared")
    with on_one_core():
        save(upper, tmp_path / "alone")
    assert (tmp_path / "shared").read_bytes() == (tmp_path / "alone").read_bytes()
    (tmp_path / "root" / "0" / "0").mkdir(parents=True)  # makes way for a file
    (tmp_path / "root" / "0" / "0" / "old").touch()
    apply(tmp_path / "shared", tmp_path / "root")
    assert tree(tmp_path / "root") == tree(upper)


def test_one_among_many_that_cannot_be_saved_is_told(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    make_many(upper)
    with pytest.raises(ImageError, match="over 2500 members"):
        save(upper, tmp_path / "out", limits=Limits(members=2500))
    (upper / "7" / ".wh.a").touch()
    with pytest.raises(FailedPreconditionError, match=r"^rw layer: '7/\.wh\.a' has a name that"):
        save(upper, tmp_path / "layer")


Part = Member | tuple[Member, bytes]
MANY: list[Part] = [directory(b"many"), *(file(b"many/%d" % at, b"%d" % at) for at in range(1500))]
# What is not the same if files are put in another order.
ORDERS: dict[str, list[Part]] = {
    "a name that comes twice": [file(b"a", b"first"), *MANY, file(b"a", b"last")],
    "a file in the place of a directory": [directory(b"a"), file(b"a/b"), *MANY, file(b"a")],
    "a link to what was there": [hard_link(b"a", b"old"), *MANY, file(b"old", b"new")],
    "a link in the place of a directory": [*MANY, symlink(b"many", b"etc")],
    "as saved": [*MANY, hard_link(b"a", b"many/7"), member(b".wh.old")],
}


@pytest.mark.parametrize("members", ORDERS.values(), ids=ORDERS)
def test_many_members_are_applied_as_in_their_order(
    root: Path, tmp_path: Path, members: list[Part]
) -> None:
    shutil.copytree(root, tmp_path / "alone" / "root", symlinks=True)
    os.utime(tmp_path / "alone" / "root", ns=(0, root.stat().st_mtime_ns))
    with on_one_core():
        apply_bytes(tmp_path / "alone" / "root", archive(*members))
    apply_bytes(root, archive(*members))
    ours, theirs = tree(root), tree(tmp_path / "alone" / "root")
    del ours[b""], theirs[b""]
    assert ours == theirs


def test_a_file_among_many_that_reaches_through_a_link_is_refused(root: Path) -> None:
    with pytest.raises(ImageError, match="is a symbolic link, expected a directory"):
        apply_bytes(root, archive(*MANY, file(b"out/new")))
    assert list((root.parent / "outside").iterdir()) == [root.parent / "outside" / "secret"]
