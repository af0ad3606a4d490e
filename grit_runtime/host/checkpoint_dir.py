"""A checkpoint's directory: reaching it safely, reading its manifest, holding it to its word.

Layout: design of the directory in the README; every path below the root is opened link by link
without following symbolic links.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack, contextmanager
from stat import S_ISDIR
from types import MappingProxyType
from typing import NamedTuple

from grit_runtime.errors import ImageError, NotFoundError
from grit_runtime.host import archive, confine, digest
from grit_runtime.model import checkpointctl
from grit_runtime.model import manifest as manifests
from grit_runtime.model.manifest import File
from grit_runtime.wire.layer import Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence

    from grit_runtime.host.digest import FileDigest
    from grit_runtime.model.manifest import Manifest

CONTAINER_LOG_LIMIT_BYTES = 10 << 20

_MANIFEST_LIMIT_BYTES = 64 << 20
_INVENTORY_LIMIT_BYTES = 64 << 10
_SPEC_LIMIT_BYTES = 16 << 20
_ARCHIVE_LIMIT_ENTRIES = 100_000
_UNNAMED = "_"  # no container of a pod is called so
_ARCHIVE_SUFFIXES = (".tar", ".tar.gz")
_UNFINISHED_SUFFIX = "-work"  # upstream's, until the container's dump is complete


class Sealed(NamedTuple):
    """A manifest, and the sha256 (hex) of its bytes, which names this very checkpoint.

    Without a manifest (*is_verifiable* false) it is what the directory itself tells.
    """

    manifest: Manifest
    sha256: str
    is_verifiable: bool = True


def open_named(root: str, names: Sequence[str]) -> int:
    """Fd of the directory that *names* lead to beneath *root*; NotFoundError if there is none."""
    try:
        return confine.open_dir(root, *names)
    except FileNotFoundError:
        raise NotFoundError(
            f"checkpoint {'/'.join((root, *names))} does not exist on this node; "
            "is it copied here and is the name right?"
        ) from None


def open_archive(root: str, names: Sequence[str]) -> int | None:
    """Fd of the archive that *names* mean, or None if they mean a directory.

    One whose name ends in .tar or .tar.gz, or that stands beside a directory that is not there.
    """
    *parents, name = names
    try:
        parent_fd = confine.open_dir(root, *parents)
    except FileNotFoundError:
        return None
    try:
        present = os.listdir(parent_fd)
        if name.endswith(_ARCHIVE_SUFFIXES):
            meant = [name]
        else:
            meant = [name + suffix for suffix in _ARCHIVE_SUFFIXES if name not in present]
        found = [candidate for candidate in meant if candidate in present]
        return confine.open_regular(parent_fd, found[0]) if found else None
    finally:
        os.close(parent_fd)


def is_private(root: str, names: Sequence[str], dir_fd: int) -> bool:
    """Whether only root can change the directory, what leads to it, and what it holds."""
    for end in range(len(names)):
        fd = confine.open_dir(root, *names[:end])
        try:
            if not confine.is_private(os.fstat(fd)):
                return False
        finally:
            os.close(fd)
    return confine.untrusted_entry(dir_fd) is None


def read_manifest(dir_fd: int, path: str) -> Sealed:
    """The manifest; ImageError if the checkpoint was never sealed or the manifest is not one."""
    try:
        fd = confine.open_regular(dir_fd, manifests.FILE_NAME)
    except FileNotFoundError:
        raise ImageError(
            f"checkpoint {path} is incomplete: it has no {manifests.FILE_NAME}; it is still being "
            "written or copied, or its checkpoint failed"
        ) from None
    with open(fd, "rb") as file:
        data = file.read(_MANIFEST_LIMIT_BYTES)
    return Sealed(manifests.parse(data), hashlib.sha256(data).hexdigest())


def read(dir_fd: int, path: str) -> Sealed:
    """The manifest, or of a checkpoint that other programs made what its files tell.

    That is upstream GRIT's layout, which has nothing but a directory for each container. One of our
    own without manifest is still being copied: ImageError.
    """
    names = os.listdir(dir_fd)
    unfinished = [name for name in names if name.endswith(_UNFINISHED_SUFFIX)]
    if manifests.FILE_NAME not in names and not unfinished:
        files = _files(dir_fd)
        containers = [name for name in sorted(names) if f"{name}/checkpoint/inventory.img" in files]
        ours = [name for name in containers if f"{name}/config.dump" in files]
        if containers and not ours:
            return unsealed(dir_fd, containers)
    return read_manifest(dir_fd, path)


def unsealed(dir_fd: int, containers: list[str]) -> Sealed:
    """Directories of *containers* as a checkpoint whose files nobody vouches for."""
    told = hashlib.sha256()
    files = _files(dir_fd)
    for name, size_bytes in sorted(files.items()):
        told.update(f"{size_bytes} {name}\n".encode("utf-8", "surrogateescape"))
    for name in containers:
        # It has the dump's own id, or at least the time.
        with open(confine.open_regular(dir_fd, f"{name}/checkpoint/inventory.img"), "rb") as file:
            told.update(file.read(_INVENTORY_LIMIT_BYTES))
    return Sealed(manifests.of_strangers(containers, files), told.hexdigest(), is_verifiable=False)


@contextmanager
def opened(path: str) -> Iterator[tuple[int, Sealed]]:
    """The checkpoint in the directory or archive at *path*, to be looked at: its fd, what it is.

    An archive is unpacked in a private directory, for as long as the block lasts.
    """
    from tempfile import TemporaryDirectory  # noqa: PLC0415  a restore has a place of its own

    with ExitStack() as stack:
        if os.path.isfile(path):
            directory = stack.enter_context(TemporaryDirectory())
            archive_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            dir_fd, sealed = unpack(archive_fd, f"{directory}/checkpoint", None)
        else:
            dir_fd = confine.open_dir(path)
            sealed = read(dir_fd, path)
        stack.callback(os.close, dir_fd)
        yield dir_fd, sealed


def unpack(archive_fd: int, path: str, container: str | None) -> tuple[int, Sealed]:
    """Unpack an archive into the new directory *path*: the checkpoint's directory in it, and what
    it is.

    An archive in checkpointctl's layout is of one container. Where it does not say which (podman's
    do not) it is of *container*; and it is not taken for any other, where one is named. One of a
    whole checkpoint of ours is taken as that.
    """
    os.makedirs(path, mode=0o700)
    os.mkdir(f"{path}/{_UNNAMED}", mode=0o700)
    dir_fd = confine.open_dir(path, _UNNAMED)
    room = os.statvfs(dir_fd)
    limits = Limits(_ARCHIVE_LIMIT_ENTRIES, room.f_bavail * room.f_frsize)
    archive.unpack(archive_fd, dir_fd, limits)
    os.close(archive_fd)
    present = _files(dir_fd)
    if manifests.FILE_NAME in present:
        return dir_fd, read_manifest(dir_fd, path)
    for name in ("spec.dump", "checkpoint/inventory.img"):
        if name not in present:
            raise ImageError(f"archive: it has no {name}; expected a container engine's checkpoint")
    with open(confine.open_regular(dir_fd, "spec.dump"), "rb") as file:
        meant = checkpointctl.container_name(file.read(_SPEC_LIMIT_BYTES))
    os.close(dir_fd)
    known = container or meant
    if known and meant in {None, known}:
        os.rename(f"{path}/{_UNNAMED}", f"{path}/{known}")
    dir_fd = confine.open_dir(path)
    return dir_fd, unsealed(dir_fd, os.listdir(dir_fd))


def check_signature(dir_fd: int, path: str, trusted_keys: str) -> None:
    """ImageError unless one of the keys in the file *trusted_keys* has signed the manifest."""
    from grit_runtime.host import signature  # noqa: PLC0415  few configure it

    manifest = read_optional(dir_fd, manifests.FILE_NAME)
    signed = read_optional(dir_fd, manifests.SIGNATURE_NAME)
    if manifest is None or signed is None:
        raise ImageError(
            f"checkpoint {path} is not signed, and the configuration's trusted_keys takes none "
            "without a signature"
        )
    try:
        signature.check(manifest, signed, trusted_keys)
    except ImageError as error:
        raise ImageError(f"checkpoint {path}: {error}") from None


def open_optional(dir_fd: int, path: str) -> int | None:
    """Fd of a regular file that not every program keeps in a checkpoint; None without it."""
    try:
        return confine.open_regular(dir_fd, path)
    except FileNotFoundError:
        return None


def read_optional(dir_fd: int, path: str, limit_bytes: int = _MANIFEST_LIMIT_BYTES) -> bytes | None:
    """What such a file holds, cut at *limit_bytes*."""
    fd = open_optional(dir_fd, path)
    if fd is None:
        return None
    with open(fd, "rb") as file:
        return file.read(limit_bytes)


def contents(path: str, known: Mapping[str, FileDigest] = MappingProxyType({})) -> tuple[File, ...]:
    """Every file beneath the directory at *path*, with its digest: what a manifest lists.

    Those whose digests are *known* are not read.
    """
    dir_fd = confine.open_dir(path)
    try:
        names = _files(dir_fd)
        digests = digest.digest_tree(dir_fd, names.keys() - known.keys())
    finally:
        os.close(dir_fd)
    digests.update(known)
    return tuple(File(name, *digests[name]) for name in sorted(digests))


def problems(dir_fd: int, manifest: Manifest, unread: Container[str] = ()) -> list[str]:
    """Where the directory differs from its manifest, one line each.

    Reads every byte, but of the files that are to be left *unread*.
    """
    wanted = {file.path: file for file in manifest.files}
    found = _files(dir_fd)
    for name in (manifests.FILE_NAME, manifests.SIGNATURE_NAME):
        found.pop(name, None)
    lines = [f"{path} is missing" for path in sorted(wanted.keys() - found.keys())]
    lines += [f"{path} is not in the manifest" for path in sorted(found.keys() - wanted.keys())]
    whole = []
    for path in sorted(wanted.keys() & found.keys()):
        if found[path] == wanted[path].size_bytes:
            whole.append(path)
        else:  # not read: a sparse file can claim any size
            lines.append(f"{path} has {found[path]} bytes, expected {wanted[path].size_bytes}")
    return lines + damaged(dir_fd, [wanted[path] for path in whole if path not in unread])


def damaged(dir_fd: int, files: Collection[File]) -> list[str]:
    """Which of the files are not what the manifest says, one line each; reads every byte."""
    digests = digest.digest_tree(dir_fd, [file.path for file in files])
    return different(files, [digests[file.path].digest for file in files])


def different(files: Iterable[File], digests: Iterable[str]) -> list[str]:
    """Which of the files have other digests than the manifest says, one line each."""
    return [
        f"{file.path} is damaged: digest {value}, expected {file.digest}"
        for file, value in zip(files, digests, strict=True)
        if value != file.digest
    ]


def _files(dir_fd: int) -> dict[str, int]:
    """The size of everything that is no directory."""
    entries = ((entry.path, entry.stat) for entry in confine.walk(dir_fd))
    return {path: stat.st_size for path, stat in entries if not S_ISDIR(stat.st_mode)}
