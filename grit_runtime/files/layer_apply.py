"""Applying a saved rw layer to a root filesystem.

It is applied through the mounted root filesystem, so it works with every snapshotter. A layer is
untrusted: a first pass changes nothing and refuses all of it if a member is out of bounds; then
each member is put in place without following links. The caller discards a root filesystem that was
changed only partly. Spec: opencontainers/image-spec layer.md@v1.1.0.
"""

from __future__ import annotations

import os
import stat

from grit_runtime.errors import ImageError, LayerError, PrivilegeError
from grit_runtime.files import (
    attributes,
    confine,
    forked_workers,
    layer_batches,
    layer_source,
    room,
)
from grit_runtime.wire import layer, tar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence, Set

    from grit_runtime.files.layer_source import Source
    from grit_runtime.wire.layer import Limits, Parts, Place, Tally
    from grit_runtime.wire.tar import Member

# As the OCI runtime spec names one: "c" or "b", major, minor.
Device = tuple[str, int, int]

# A member that may be applied, where it goes, and where in the layer its data begin.
_Checked = tuple["Member", "Place", int]


# So many members of a layer are kept between its two passes: some 100 MiB.
_KEPT_MEMBERS = 1 << 17


_DEVICES = {tar.CHAR_DEVICE: "c", tar.BLOCK_DEVICE: "b"}
_NODE_TYPES = {
    tar.CHAR_DEVICE: stat.S_IFCHR,
    tar.BLOCK_DEVICE: stat.S_IFBLK,
    tar.FIFO: stat.S_IFIFO,
    tar.SOCKET: stat.S_IFSOCK,
}


def apply(
    in_fd: int,
    root_fd: int,
    *,
    allowed_devices: Set[Device] = frozenset(),
    limits: Limits = layer.DEFAULT_LIMITS,
) -> None:
    """Apply the layer in *in_fd*, a tar, plain or gzip, onto the root filesystem *root_fd*.

    Whiteouts hide only what was there before, wherever they stand in the layer; of two members of
    one name the last counts. Extended attributes become exactly the layer's, except the node's own
    (layer.is_carried). ImageError for a layer that is damaged, out of bounds or reaches out of the
    root, PrivilegeError for a device not in *allowed_devices*, FailedPreconditionError for one that
    cannot have room; OSError names the member.
    """
    tally = layer.Tally(limits)
    hidden = []
    kept: list[_Checked] = []
    for member, place, source in _checked_members(in_fd, allowed_devices, tally):
        if not isinstance(place, layer.Present):
            hidden.append(place)
        if len(kept) < _KEPT_MEMBERS:
            kept.append((member, place, source.position))
    is_kept = tally.members <= _KEPT_MEMBERS
    room.check_room(_needed_bytes(in_fd, tally), root_fd)
    for place in hidden:
        _remove(root_fd, place)
    directories: dict[Parts, Member] = {}
    if not is_kept:
        kept.clear()
        again = _checked_members(in_fd, allowed_devices, layer.Tally(limits))
        _put_all(again, root_fd, directories)
    elif _is_worth_sharing(in_fd, kept):
        _put_shared(in_fd, kept, root_fd, directories)
    else:
        _put_all(_again(in_fd, kept), root_fd, directories)
    # Last: entries change a directory's mtime, and its default ACL changes new entries.
    for parts, member in directories.items():
        _finish_directory(root_fd, parts, member)


def delete(root_fd: int, paths: Sequence[bytes]) -> None:
    """Remove *paths*, as whiteouts of them would.

    ImageError, before anything is removed, for a path that could lead out of the root.
    """
    for parts in [layer.parse_path(path) for path in paths]:
        if parts:
            _remove(root_fd, layer.Whiteout(parts[:-1], parts[-1]))


def _needed_bytes(layer_fd: int, tally: Tally) -> int:
    """The least room that a layer takes: holes of a plain tar stay holes."""
    if layer_source.is_compressed(layer_fd):
        return tally.data_bytes
    return min(tally.data_bytes, os.fstat(layer_fd).st_blocks * room.BLOCK_BYTES)


def _checked_members(
    in_fd: int, allowed_devices: Set[Device], tally: Tally
) -> Iterator[tuple[Member, Place, Source]]:
    """The members that may be applied, each with the source at its data, which may stay unread."""
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


def _again(in_fd: int, kept: Sequence[_Checked]) -> Iterator[tuple[Member, Place, Source]]:
    """As `_checked_members`, without new checks; the number is the offset of the data."""
    source = layer_source.open_source(in_fd)
    for member, place, position in kept:
        source.skip(position - source.position)
        yield member, place, source


def _checked(member: Member, allowed_devices: Set[Device]) -> Place:
    """Where *member* goes, if it may be applied at all."""
    place = layer.parse_name(member.name)
    if not isinstance(place, layer.Present):
        if member.kind != tar.FILE or member.size_bytes:
            raise LayerError(f"layer: whiteout {tar.shown(member.name)} is no empty file")
        return place
    if not place.parts and member.kind != tar.DIRECTORY:
        raise LayerError(f"layer: the root {tar.shown(member.name)} is no directory")
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
    raise LayerError(
        f"layer: {tar.shown(member.name)} is a hard link to {tar.shown(member.link)}, "
        "expected another file"
    )


def _naming(member: Member, error: OSError) -> OSError:
    return OSError(error.errno, error.strerror, tar.shown(member.name))


def _remove(root_fd: int, place: layer.Whiteout | layer.Opaque) -> None:
    """Remove what *place* hides."""
    try:
        directory_fd = confine.descend(root_fd, place.directory)
    except (FileNotFoundError, ImageError):
        return  # nothing to hide: the layer's own directory will replace what is there now
    try:
        if isinstance(place, layer.Opaque):
            confine.clear(directory_fd)
        else:
            confine.remove_tree(directory_fd, place.name)
    finally:
        os.close(directory_fd)


def _put_all(
    checked: Iterable[tuple[Member, Place, Source]], root_fd: int, directories: dict[Parts, Member]
) -> None:
    with confine.Directories(root_fd) as opened:
        for member, place, source in checked:
            try:
                _put(member, place, source, opened, directories)
            except OSError as error:
                raise _naming(member, error) from error


def _is_worth_sharing(in_fd: int, kept: Sequence[_Checked]) -> bool:
    return (
        len(kept) > layer_batches.MANY
        and forked_workers.worth_making() > 1
        and not layer_source.is_compressed(in_fd)
        and _is_same_in_any_order(kept)
    )


def _is_same_in_any_order(kept: Sequence[_Checked]) -> bool:
    """Whether files may be put in any order, after everything else but hard links.

    That is so if each name occurs once, hard links come after their files, and nothing is beneath
    a member that is not a directory.
    """
    kinds: dict[Parts, str] = {}
    above: set[Parts] = set()
    for member, place, _ in kept:
        if not isinstance(place, layer.Present):
            above.add(place.directory)
            continue
        if place.parts in kinds:
            return False
        if member.kind == tar.HARD_LINK and _link_target(member, place.parts) not in kinds:
            return False
        kinds[place.parts] = member.kind
        above.add(place.parts[:-1])
    return all(
        kinds.get(parts[:end], tar.DIRECTORY) == tar.DIRECTORY
        for parts in above
        for end in range(len(parts) + 1)
    )


def _put_shared(
    in_fd: int, kept: Sequence[_Checked], root_fd: int, directories: dict[Parts, Member]
) -> None:
    """As `_put_all`, with all cores for the files."""
    files, links, others = [], [], []
    for checked in kept:
        member, place, _ = checked
        if member.kind == tar.HARD_LINK:
            links.append(checked)
        elif member.kind == tar.FILE and isinstance(place, layer.Present):
            files.append(checked)
        else:
            others.append(checked)
    _put_all(_again(in_fd, others), root_fd, directories)
    count = forked_workers.worth_making()

    def put_share(number: int) -> None:
        begins = range(number * layer_batches.BATCH, len(files), count * layer_batches.BATCH)
        share = [file for begin in begins for file in files[begin : begin + layer_batches.BATCH]]
        _put_all(_again(in_fd, share), root_fd, {})

    forked_workers.share(put_share, count)
    _put_all(_again(in_fd, links), root_fd, directories)


def _put(
    member: Member,
    place: Place,
    source: Source,
    opened: confine.Directories,
    directories: dict[Parts, Member],
) -> None:
    """Put *member* in its place; a directory's attributes are left to the end of the layer."""
    if not isinstance(place, layer.Present):
        _descend(opened, place.directory, member)
        return
    parents, name = (place.parts[:-1], place.parts[-1]) if place.parts else ((), b".")
    parent_fd = _descend(opened, parents, member)
    if member.kind == tar.DIRECTORY:
        directories[place.parts] = member
        _put_directory(parent_fd, name)
        return
    directories.pop(place.parts, None)
    if name == b".":
        raise LayerError("layer: the root is no directory")
    try:
        _make(member, place.parts, source, opened, parent_fd)
    except FileExistsError:
        confine.remove_tree(parent_fd, name)
        opened.forget()  # the open directory may be gone
        _make(member, place.parts, source, opened, _descend(opened, parents, member))


def _make(
    member: Member, parts: Parts, source: Source, opened: confine.Directories, parent_fd: int
) -> None:
    """Make *member*, not a directory; FileExistsError, with nothing changed, if it exists."""
    name = parts[-1]
    if member.kind == tar.HARD_LINK:
        _put_hard_link(member, parts, opened, parent_fd)
    elif member.kind == tar.FILE:
        _create_file(member, source, parent_fd, name)
    else:
        _create_node(member, parent_fd, name)
        attributes.set_by_name(parent_fd, name, member)


def _descend(opened: confine.Directories, names: Sequence[bytes], member: Member) -> int:
    """The directory that *names* lead to, open until another is asked for."""
    try:
        return opened.descend(names)
    except FileNotFoundError as error:
        raise LayerError(
            f"layer: {tar.shown(member.name)} lies in no directory of the image or the layer"
        ) from error


def _put_directory(parent_fd: int, name: bytes) -> None:
    """Make the directory *name*; an existing one keeps its content."""
    try:
        mode = os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            return
        os.unlink(name, dir_fd=parent_fd)
    except FileNotFoundError:
        pass
    os.mkdir(name, 0o700, dir_fd=parent_fd)


def _put_hard_link(
    member: Member, parts: Parts, opened: confine.Directories, parent_fd: int
) -> None:
    *target_parents, target = _link_target(member, parts)
    try:
        target_fd = confine.descend(opened.root_fd, target_parents)
    except FileNotFoundError as error:
        raise LayerError(
            f"layer: {tar.shown(member.link)} lies in no directory of the image or the layer"
        ) from error
    try:
        mode = os.stat(target, dir_fd=target_fd, follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode) or stat.S_ISDIR(mode):
            raise LayerError(
                f"layer: {tar.shown(member.name)} is a hard link to {tar.shown(member.link)}, "
                f"which is {confine.kind(mode)}, expected a file"
            )
        os.link(
            target, parts[-1], src_dir_fd=target_fd, dst_dir_fd=parent_fd, follow_symlinks=False
        )
    finally:
        os.close(target_fd)


def _create_node(member: Member, parent_fd: int, name: bytes) -> None:
    if member.kind == tar.SYMLINK:
        os.symlink(member.link, name, dir_fd=parent_fd)
    else:
        mode = _NODE_TYPES[member.kind] | 0o600
        os.mknod(name, mode, os.makedev(*member.device), dir_fd=parent_fd)


def _create_file(member: Member, source: Source, parent_fd: int, name: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, member.mode & 0o777, dir_fd=parent_fd)
    try:
        if member.size_bytes:
            source.copy_to(fd, member.size_bytes)
        attributes.set_all(fd, member)
    finally:
        os.close(fd)


def _finish_directory(root_fd: int, parts: Parts, member: Member) -> None:
    fd = confine.descend(root_fd, parts)
    try:
        attributes.set_by_name(fd, b".", member)
    except OSError as error:
        raise _naming(member, error) from error
    finally:
        os.close(fd)
