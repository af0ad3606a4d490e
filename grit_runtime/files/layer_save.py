"""Saving a container's rw layer, an overlay's upper directory, as an image layer.

Reads the upper directory itself, because only it shows whiteouts and opaque directories. The caller
finds it. Spec: opencontainers/image-spec layer.md@v1.1.0; linux
Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import itertools
import os
import stat

from grit_runtime.errors import NotDumpableError
from grit_runtime.files import confine, fdcopy, forked_workers, layer_batches
from grit_runtime.files.layer_batches import Batch, Progress, Turns
from grit_runtime.wire import layer, tar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from grit_runtime.files.confine import Entry
    from grit_runtime.wire.layer import Limits
    from grit_runtime.wire.tar import Member


_WHITEOUT_XATTR = b"trusted.overlay.whiteout"


_OPAQUE_XATTR = b"trusted.overlay.opaque"


# What an upper directory can hold that a layer cannot express, and how it came to be there.
_UNSAVABLE = {
    b"trusted.overlay.redirect": "was renamed: mount the overlay with redirect_dir=off",
    b"trusted.overlay.metacopy": "has no data of its own: mount the overlay with metacopy=off",
}


_NESTED_XATTR = b"trusted.overlay.overlay."


_KINDS = {
    stat.S_IFREG: tar.FILE,
    stat.S_IFDIR: tar.DIRECTORY,
    stat.S_IFLNK: tar.SYMLINK,
    stat.S_IFIFO: tar.FIFO,
    stat.S_IFSOCK: tar.SOCKET,
    stat.S_IFCHR: tar.CHAR_DEVICE,
    stat.S_IFBLK: tar.BLOCK_DEVICE,
}


def save(upper_fd: int, out_fd: int, *, limits: Limits = layer.DEFAULT_LIMITS) -> None:
    """Write an overlay's upper directory to the empty regular file *out_fd* as a layer tar.

    Holes stay holes in the tar file. Names of one regular file stay one file; a fifo, device or
    symbolic link with several names becomes several. Nothing may change the tree meanwhile. Does
    not fsync. FailedPreconditionError for what a layer cannot express, ImageError over the limits.
    """
    paths = [".", *itertools.islice(confine.paths(upper_fd), limits.members)]
    count = forked_workers.worth_making() if len(paths) > layer_batches.MANY else 1
    turns = Turns(count)

    def save_share(number: int) -> Progress:
        return _save_share(upper_fd, out_fd, Batch(limits), paths, turns, number)

    try:
        turns.give(0, Progress())
        shares = forked_workers.share(save_share, count) if count > 1 else [save_share(0)]
    finally:
        turns.close()
    os.lseek(out_fd, max(shares).size_bytes, os.SEEK_SET)
    fdcopy.write_all(out_fd, tar.END)


def _save_share(
    upper_fd: int, out_fd: int, batch: Batch, paths: list[str], turns: Turns, number: int
) -> Progress:
    """Save one fork's share of *paths*; the progress of the layer after its last batch."""
    last = Progress()
    own_fd = os.open(f"/proc/self/fd/{out_fd}", os.O_WRONLY | os.O_CLOEXEC)  # has its own offset
    try:
        with confine.Directories(upper_fd) as opened:
            for begin in turns.of(number, range(0, len(paths), layer_batches.BATCH)):
                for index, path in enumerate(paths[begin : begin + layer_batches.BATCH], begin):
                    entry = _entry(opened, path)
                    first = path
                    if stat.S_ISREG(entry.stat.st_mode) and entry.stat.st_nlink > 1:
                        turns.take(number)
                        first = paths[turns.first(entry.stat, index)]
                    _add(entry, batch, first)
                last = turns.write(number, batch, own_fd)
    finally:
        os.close(own_fd)
    return last


def _entry(opened: confine.Directories, path: str) -> Entry:
    *parents, name = path.split("/")
    parent_fd = opened.descend(parents)
    try:
        status = os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error
    return confine.Entry(path, status, parent_fd, name)


def _add(entry: Entry, batch: Batch, first: str) -> None:
    if not stat.S_ISREG(entry.stat.st_mode):
        path = f"/proc/self/fd/{entry.parent_fd}/{entry.name}"
        for member in _members_of(entry, _read_xattrs(path), first):
            batch.add(member)
        return
    # The entry was seen as a regular file, and nothing changes it.
    fd = os.open(entry.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=entry.parent_fd)
    try:
        for member in _members_of(entry, _read_xattrs(fd), first):
            batch.add(member, file_fd=fd)
    finally:
        os.close(fd)


def _read_xattrs(file: int | str) -> dict[bytes, bytes]:
    """The extended attributes of an open file, or of what is at a path, a link itself."""
    follows = isinstance(file, int)
    names = os.listxattr(file, follow_symlinks=follows)
    if not names:
        return {}
    return {os.fsencode(n): os.getxattr(file, n, follow_symlinks=follows) for n in names}


def _members_of(entry: Entry, xattrs: dict[bytes, bytes], first: str) -> Iterator[Member]:
    """The layer's members for *entry*, whose file has *first* as its first name."""
    name = os.fsencode(entry.path)
    _check_savable(name, xattrs)
    if _is_whiteout(entry.stat, xattrs):
        yield _marker(entry.stat, os.path.dirname(name), layer.WHITEOUT + os.fsencode(entry.name))
        return
    carried = {k: v for k, v in xattrs.items() if layer.is_carried(k)} if xattrs else xattrs
    member = _member(entry, name, carried)
    if first != entry.path:
        member = member._replace(kind=tar.HARD_LINK, size_bytes=0, link=os.fsencode(first))
    yield member
    if xattrs.get(_OPAQUE_XATTR) == b"y":
        yield _marker(entry.stat, b"" if name == b"." else name, layer.OPAQUE)


def _check_savable(name: bytes, xattrs: dict[bytes, bytes]) -> None:
    reasons = []
    if xattrs:
        reasons += [reason for xattr, reason in _UNSAVABLE.items() if xattr in xattrs]
        if any(xattr.startswith(_NESTED_XATTR) for xattr in xattrs):
            reasons.append("belongs to an overlay inside the container: keep that on a volume")
        if any(b"=" in xattr for xattr in xattrs):
            reasons.append("has an extended attribute with = in its name, which tar can't spell")
    if layer.is_reserved(name.rpartition(b"/")[2]):
        reasons.append("has a name that means a whiteout in a layer: rename it")
    if len(name) > tar.MAX_NAME_BYTES - len(layer.OPAQUE) - 1:
        reasons.append("lies deeper than a path can name: remove it")
    if reasons:
        raise NotDumpableError(f"rw layer: {os.fsdecode(name)!r} {reasons[0]}")


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
        device=(os.major(status.st_rdev), os.minor(status.st_rdev))
        if kind in tar.DEVICES
        else (0, 0),
    )
