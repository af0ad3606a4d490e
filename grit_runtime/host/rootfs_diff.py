"""A container's rw layer: an overlay's upper directory saved as an image layer, and put back.

Saving reads the upper directory itself, for it alone tells whiteouts and opaque directories.
Applying goes through the mounted root filesystem, so it works with every snapshotter. A layer is
input from outside: it is read once without changing anything and refused whole if a member is out
of bounds; then each is put in place, no link followed. Finding the upper directory, and discarding
a root filesystem that was changed half, are the caller's. Spec: opencontainers/image-spec
layer.md@v1.1.0; linux Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from grit_runtime.errors import FailedPreconditionError, ImageError, PrivilegeError
from grit_runtime.host import confine, fdcopy, layer_source
from grit_runtime.wire import layer, tar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence, Set

    from grit_runtime.host.confine import Entry
    from grit_runtime.host.layer_source import Source
    from grit_runtime.wire.layer import Limits, Parts, Place, Tally
    from grit_runtime.wire.tar import Member

# As the OCI runtime spec names one: "c" or "b", major, minor.
Device = tuple[str, int, int]

_WHITEOUT_XATTR = b"trusted.overlay.whiteout"
_OPAQUE_XATTR = b"trusted.overlay.opaque"
# What an upper directory can hold that a layer cannot say, and how it came to be there.
_UNSAVABLE = {
    b"trusted.overlay.redirect": "was renamed: mount the overlay with redirect_dir=off",
    b"trusted.overlay.metacopy": "has no data of its own: mount the overlay with metacopy=off",
}
_NESTED_XATTR = b"trusted.overlay.overlay."

_BLOCK_BYTES = 512  # of st_blocks, whatever the filesystem's own are

_KINDS = {
    stat.S_IFREG: tar.FILE,
    stat.S_IFDIR: tar.DIRECTORY,
    stat.S_IFLNK: tar.SYMLINK,
    stat.S_IFIFO: tar.FIFO,
    stat.S_IFCHR: tar.CHAR_DEVICE,
    stat.S_IFBLK: tar.BLOCK_DEVICE,
}
_DEVICES = {tar.CHAR_DEVICE: "c", tar.BLOCK_DEVICE: "b"}
_NODE_TYPES = {
    tar.CHAR_DEVICE: stat.S_IFCHR,
    tar.BLOCK_DEVICE: stat.S_IFBLK,
    tar.FIFO: stat.S_IFIFO,
}


class Saved(NamedTuple):
    members: int
    data_bytes: int
    sockets_skipped: int


class Applied(NamedTuple):
    members: int
    data_bytes: int
    removed: int


def save(upper_fd: int, out_fd: int, *, limits: Limits = layer.DEFAULT_LIMITS) -> Saved:
    """Write an overlay's upper directory to the empty regular file *out_fd* as a layer tar.

    Holes stay holes in the tar file. Names of one regular file stay one file; a fifo, device or
    symbolic link with several names becomes several. Nothing may change the tree meanwhile. Does
    not fsync. FailedPreconditionError for what a layer cannot say, ImageError over the limits.
    """
    links: dict[tuple[int, int], bytes] = {}
    tally = layer.Tally(limits)
    sockets_skipped = 0
    for entry in _entries(upper_fd):
        if stat.S_ISSOCK(entry.stat.st_mode):
            sockets_skipped += 1
            continue
        for member in _members_of(entry, links):
            tally.add(member)
            fdcopy.write_all(out_fd, tar.encode(member))
            if member.size_bytes:
                _save_data(entry, member.size_bytes, out_fd)
    fdcopy.write_all(out_fd, tar.END)
    return Saved(tally.members, tally.data_bytes, sockets_skipped)


def apply(
    in_fd: int,
    root_fd: int,
    *,
    allowed_devices: Set[Device] = frozenset(),
    limits: Limits = layer.DEFAULT_LIMITS,
) -> Applied:
    """Apply the layer in *in_fd*, a tar, plain or gzip, onto the root filesystem *root_fd*.

    Whiteouts hide only what was there before, wherever they stand in the layer; of two members of
    one name the last counts. Extended attributes become exactly the layer's, except the node's own
    (layer.is_carried). ImageError for a layer that is damaged, out of bounds or reaches out of the
    root, PrivilegeError for a device not in *allowed_devices*, FailedPreconditionError for one that
    cannot have room; OSError names the member.
    """
    tally = layer.Tally(limits)
    hidden = [
        place
        for _, place, _ in _checked_members(in_fd, allowed_devices, tally)
        if not isinstance(place, layer.Present)
    ]
    check_room(_needed_bytes(in_fd, tally), root_fd)
    removed = sum(_remove(root_fd, place) for place in hidden)
    directories: dict[Parts, Member] = {}
    for member, place, source in _checked_members(in_fd, allowed_devices, layer.Tally(limits)):
        try:
            _put(member, place, source, root_fd, directories)
        except OSError as error:
            raise _naming(member, error) from error
    # What goes into a directory changes its mtime, and its default ACL changes what goes in.
    for parts, member in directories.items():
        _finish_directory(root_fd, parts, member)
    return Applied(tally.members, tally.data_bytes, removed)


def used_bytes(upper_fd: int) -> int:
    """The least room that an upper directory takes when it is saved."""
    blocks = {(s.st_dev, s.st_ino): s.st_blocks for s in (e.stat for e in _entries(upper_fd))}
    return sum(blocks.values()) * _BLOCK_BYTES


def check_room(needed_bytes: int, directory_fd: int) -> None:
    """FailedPreconditionError if the filesystem of the directory has not that much room."""
    room = os.statvfs(directory_fd)
    free_bytes = room.f_bfree * room.f_frsize
    if needed_bytes > free_bytes:
        raise FailedPreconditionError(
            f"{needed_bytes} bytes to write and {free_bytes} free on the filesystem of "
            f"{os.readlink(f'/proc/self/fd/{directory_fd}')}; make room there"
        )


def delete(root_fd: int, paths: Sequence[bytes]) -> int:
    """Remove *paths*, as whiteouts of them would; the number of entries removed.

    ImageError for a path that could lead out of the root.
    """
    parts = [layer.parse_path(path) for path in paths]
    return sum(_remove(root_fd, layer.Whiteout(p[:-1], p[-1])) for p in parts if p)


def _needed_bytes(layer_fd: int, tally: Tally) -> int:
    """The least room that a layer takes: holes of a plain tar stay holes."""
    if layer_source.is_compressed(layer_fd):
        return tally.data_bytes
    return min(tally.data_bytes, os.fstat(layer_fd).st_blocks * _BLOCK_BYTES)


def _entries(upper_fd: int) -> Iterator[Entry]:
    yield confine.Entry(".", os.fstat(upper_fd), upper_fd, ".")
    yield from confine.walk(upper_fd)


def _members_of(entry: Entry, links: dict[tuple[int, int], bytes]) -> Iterator[Member]:
    """What the layer says of *entry*; *links* remembers files with several names."""
    name = os.fsencode(entry.path)
    xattrs = _read_xattrs(f"/proc/self/fd/{entry.parent_fd}/{entry.name}")
    _check_savable(entry, xattrs)
    if _is_whiteout(entry.stat, xattrs):
        yield _marker(entry.stat, os.path.dirname(name), layer.WHITEOUT + os.fsencode(entry.name))
        return
    member = _member(entry, name, {k: v for k, v in xattrs.items() if layer.is_carried(k)})
    if member.kind == tar.FILE and entry.stat.st_nlink > 1:
        first = links.setdefault((entry.stat.st_dev, entry.stat.st_ino), name)
        if first != name:
            member = member._replace(kind=tar.HARD_LINK, size_bytes=0, link=first)
    yield member
    if xattrs.get(_OPAQUE_XATTR) == b"y":
        yield _marker(entry.stat, b"" if name == b"." else name, layer.OPAQUE)


def _read_xattrs(path: str) -> dict[bytes, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {os.fsencode(n): os.getxattr(path, n, follow_symlinks=False) for n in names}


def _check_savable(entry: Entry, xattrs: dict[bytes, bytes]) -> None:
    reasons = [reason for xattr, reason in _UNSAVABLE.items() if xattr in xattrs]
    if any(xattr.startswith(_NESTED_XATTR) for xattr in xattrs):
        reasons.append("belongs to an overlay inside the container: keep that on a volume")
    if any(b"=" in xattr for xattr in xattrs):
        reasons.append("has an extended attribute with = in its name, which tar can't spell")
    if layer.is_reserved(os.fsencode(entry.name)):
        reasons.append("has a name that means a whiteout in a layer: rename it")
    if len(os.fsencode(entry.path)) > tar.MAX_NAME_BYTES - len(layer.OPAQUE) - 1:
        reasons.append("lies deeper than a path can name: remove it")
    if reasons:
        raise FailedPreconditionError(f"rw layer: {entry.path!r} {reasons[0]}")


def _is_whiteout(status: os.stat_result, xattrs: dict[bytes, bytes]) -> bool:
    if stat.S_ISCHR(status.st_mode):
        return status.st_rdev == os.makedev(0, 0)
    return stat.S_ISREG(status.st_mode) and not status.st_size and _WHITEOUT_XATTR in xattrs


def _marker(status: os.stat_result, directory: bytes, name: bytes) -> Member:
    path = directory + b"/" + name if directory else name
    return tar.Member(path, tar.FILE, 0, 0, 0, status.st_mtime_ns, {})


def _member(entry: Entry, name: bytes, xattrs: dict[bytes, bytes]) -> Member:
    status = entry.stat
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    link = b""
    if kind == tar.SYMLINK:
        link = os.fsencode(os.readlink(entry.name, dir_fd=entry.parent_fd))
    return tar.Member(
        name + b"/" if kind == tar.DIRECTORY else name,
        kind,
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        xattrs,
        size_bytes=status.st_size if kind == tar.FILE else 0,
        link=link,
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if kind in _DEVICES else (0, 0),
    )


def _save_data(entry: Entry, size_bytes: int, out_fd: int) -> None:
    fd = confine.open_regular(entry.parent_fd, entry.name)
    try:
        fdcopy.copy_range(fd, out_fd, src_offset=0, size_bytes=size_bytes)
    except OSError as error:
        raise OSError(error.errno, error.strerror, entry.path) from error
    finally:
        os.close(fd)
    fdcopy.write_all(out_fd, bytes(tar.padding(size_bytes)))


def _checked_members(
    in_fd: int, allowed_devices: Set[Device], tally: Tally
) -> Iterator[tuple[Member, Place, Source]]:
    """The members that may be applied, each with the source at its data, which may be left."""
    source = layer_source.open_source(in_fd)
    while True:
        start = source.position
        try:
            member = tar.read_member(source.read)
            if member is None:
                break
            tally.add(member)
            place = _checked(member, allowed_devices)
        except (ImageError, PrivilegeError) as error:
            raise type(error)(f"{error} (byte {start} of the layer)") from error
        end = source.position + member.size_bytes + tar.padding(member.size_bytes)
        yield member, place, source
        source.skip(end - source.position)
    source.finish()


def _checked(member: Member, allowed_devices: Set[Device]) -> Place:
    """Where *member* goes, if it may be applied at all."""
    place = layer.parse_name(member.name)
    if not isinstance(place, layer.Present):
        if member.kind != tar.FILE or member.size_bytes:
            raise ImageError(f"layer: whiteout {tar.shown(member.name)} is no empty file")
        return place
    if not place.parts and member.kind != tar.DIRECTORY:
        raise ImageError(f"layer: the root {tar.shown(member.name)} is no directory")
    if member.kind in _DEVICES and (_DEVICES[member.kind], *member.device) not in allowed_devices:
        raise PrivilegeError(
            f"layer: {tar.shown(member.name)} is device {_DEVICES[member.kind]} "
            f"{member.device[0]}:{member.device[1]}, which the pod's spec does not list"
        )
    if member.kind == tar.HARD_LINK:
        _link_target(member, place.parts)
    for xattr, value in member.xattrs.items():
        layer.check_xattr(xattr, value)
    return place


def _link_target(member: Member, parts: Parts) -> Parts:
    match layer.parse_name(member.link):
        case layer.Present(target) if target and target[: len(parts)] != parts:
            return target
    raise ImageError(
        f"layer: {tar.shown(member.name)} is a hard link to {tar.shown(member.link)}, "
        "expected another file"
    )


def _naming(member: Member, error: OSError) -> OSError:
    return OSError(error.errno, error.strerror, tar.shown(member.name))


def _remove(root_fd: int, place: layer.Whiteout | layer.Opaque) -> int:
    """Remove what *place* hides; the number of entries."""
    try:
        directory_fd = confine.descend(root_fd, place.directory)
    except (FileNotFoundError, ImageError):
        return 0  # nothing to hide: what stands there now is replaced by the layer's own directory
    try:
        if isinstance(place, layer.Opaque):
            return confine.clear(directory_fd)
        return int(confine.remove_tree(directory_fd, place.name))
    finally:
        os.close(directory_fd)


def _put(
    member: Member, place: Place, source: Source, root_fd: int, directories: dict[Parts, Member]
) -> None:
    """Put *member* in its place; a directory's attributes are left to the end of the layer."""
    if not isinstance(place, layer.Present):
        os.close(_descend(root_fd, place.directory, member))
        return
    *parents, name = place.parts or (b".",)
    parent_fd = _descend(root_fd, parents, member)
    try:
        if member.kind == tar.DIRECTORY:
            directories[place.parts] = member
            _put_directory(parent_fd, name)
            return
        directories.pop(place.parts, None)
        confine.remove_tree(parent_fd, name)
        if member.kind == tar.HARD_LINK:
            _put_hard_link(member, place.parts, root_fd, parent_fd)
            return
        _create(member, source, parent_fd, name)
        _set_attributes(parent_fd, name, member)
    finally:
        os.close(parent_fd)


def _descend(root_fd: int, names: Sequence[bytes], member: Member) -> int:
    try:
        return confine.descend(root_fd, names)
    except FileNotFoundError as error:
        raise ImageError(
            f"layer: {tar.shown(member.name)} lies in no directory of the image or the layer"
        ) from error


def _put_directory(parent_fd: int, name: bytes) -> None:
    """Directory *name*; one that is there keeps what it holds."""
    try:
        mode = os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            return
        os.unlink(name, dir_fd=parent_fd)
    except FileNotFoundError:
        pass
    os.mkdir(name, 0o700, dir_fd=parent_fd)


def _put_hard_link(member: Member, parts: Parts, root_fd: int, parent_fd: int) -> None:
    *target_parents, target = _link_target(member, parts)
    target_fd = _descend(root_fd, target_parents, member)
    try:
        mode = os.stat(target, dir_fd=target_fd, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode) or stat.S_ISDIR(mode):
            raise ImageError(
                f"layer: {tar.shown(member.name)} is a hard link to {tar.shown(member.link)}, "
                f"which is {confine.kind(mode)}, expected a file"
            )
        os.link(
            target, parts[-1], src_dir_fd=target_fd, dst_dir_fd=parent_fd, follow_symlinks=False
        )
    finally:
        os.close(target_fd)


def _create(member: Member, source: Source, parent_fd: int, name: bytes) -> None:
    if member.kind == tar.SYMLINK:
        os.symlink(member.link, name, dir_fd=parent_fd)
    elif member.kind in _NODE_TYPES:
        mode = _NODE_TYPES[member.kind] | 0o600
        os.mknod(name, mode, os.makedev(*member.device), dir_fd=parent_fd)
    else:
        _create_file(member, source, parent_fd, name)


def _create_file(member: Member, source: Source, parent_fd: int, name: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, 0o600, dir_fd=parent_fd)
    try:
        source.copy_to(fd, member.size_bytes)
        os.ftruncate(fd, member.size_bytes)
    finally:
        os.close(fd)


def _finish_directory(root_fd: int, parts: Parts, member: Member) -> None:
    fd = confine.descend(root_fd, parts)
    try:
        _set_attributes(fd, b".", member)
    except OSError as error:
        raise _naming(member, error) from error
    finally:
        os.close(fd)


def _set_attributes(parent_fd: int, name: bytes, member: Member) -> None:
    # An O_PATH descriptor is the file itself, a symbolic link too, whatever its name is by now.
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
    path = f"/proc/self/fd/{fd}"
    try:
        # In this order: chown takes setuid bits and capabilities away, chmod changes an ACL.
        os.chown(path, member.uid, member.gid)
        if member.kind != tar.SYMLINK:
            os.chmod(path, member.mode)
        _set_xattrs(path, member.xattrs)
        os.utime(path, ns=(member.mtime_ns, member.mtime_ns))
    finally:
        os.close(fd)


def _set_xattrs(path: str, xattrs: dict[bytes, bytes]) -> None:
    for name in map(os.fsencode, os.listxattr(path)):
        if layer.is_carried(name) and name not in xattrs:
            os.removexattr(path, name)
    for name, value in xattrs.items():
        if layer.is_carried(name):
            os.setxattr(path, name, value)
