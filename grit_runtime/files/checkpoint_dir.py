"""A checkpoint's directory: opening it safely, reading its manifest, comparing files with that.

Layout: design of the directory in the README; every path below the root is opened link by link
without following symbolic links.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from contextlib import ExitStack, contextmanager
from stat import S_ISDIR
from types import MappingProxyType
from typing import Any

from grit_runtime.errors import (
    DigestError,
    ImageError,
    ManifestError,
    NotFoundError,
    SignatureError,
)
from grit_runtime.files import archive, confine, digest
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import checkpointctl
from grit_runtime.model import manifest as manifests
from grit_runtime.model.manifest import File
from grit_runtime.startup.named import NamedTuple
from grit_runtime.wire.layer import Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence

    from grit_runtime.files.digest import FileDigest
    from grit_runtime.model.manifest import Manifest

# Upstream's agent writes it when all else of a checkpoint is on the node.
SENTINEL = "download-state"

PARENT = "parent"  # with the images that others add to; CR_PARENT_LINK of criu/include/image.h

_MEMORY = re.compile(rf"[^/]+/checkpoint/(?:{PARENT}/)+pages-[^/]*")

CONTAINER_LOG_LIMIT_BYTES = 10 << 20

_MANIFEST_LIMIT_BYTES = 64 << 20
_INVENTORY_LIMIT_BYTES = 64 << 10
_SPEC_LIMIT_BYTES = 16 << 20
_ARCHIVE_LIMIT_ENTRIES = 100_000
_UNNAMED = "_"  # no container of a pod is called so
_ARCHIVE_SUFFIXES = (".tar", ".tar.gz")
_SENTINEL_CONTENT = b"Transfer Completed\n"
_UNFINISHED_SUFFIX = "-work"  # upstream's, until the container's dump is complete


class Checkpoint(NamedTuple):
    """A manifest, and the sha256 (hex) of its bytes, which names this very checkpoint.

    Without a manifest (*is_verifiable* false) both are derived from the directory's files.
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


def open_arriving(root: str, namespace: str, name: str) -> int | None:
    """Fd of the directory in which a checkpoint is put together; None if it has its name already.

    None too if others than root can change it: a copy would have to wait for all of it.
    """
    try:
        dir_fd = confine.open_dir(root, namespace, name)
    except FileNotFoundError:
        return None
    if is_private(root, (namespace, name), dir_fd):
        return dir_fd
    os.close(dir_fd)
    return None


def open_archive(root: str, names: Sequence[str]) -> int | None:
    """Fd of the archive that *names* lead to, or None if they lead to a directory.

    Without the suffix .tar or .tar.gz, an archive is taken only if there is no such directory.
    """
    *parents, name = names
    try:
        parent_fd = confine.open_dir(root, *parents)
    except FileNotFoundError:
        return None
    with closing_fd(parent_fd):
        present = os.listdir(parent_fd)
        if name.endswith(_ARCHIVE_SUFFIXES):
            candidates = [name]
        else:
            candidates = [name + suffix for suffix in _ARCHIVE_SUFFIXES if name not in present]
        found = [candidate for candidate in candidates if candidate in present]
        return confine.open_regular(parent_fd, found[0]) if found else None


def is_private(root: str, names: Sequence[str], dir_fd: int) -> bool:
    """Whether only root can change the directory, what leads to it, and what it holds."""
    for end in range(len(names)):
        with closing_fd(confine.open_dir(root, *names[:end])) as fd:
            if not confine.is_private(os.fstat(fd)):
                return False
    return confine.untrusted_entry(dir_fd) is None


def read_manifest(dir_fd: int, path: str) -> Checkpoint:
    """The manifest; ImageError if the checkpoint was never sealed or the manifest is not one."""
    return of_manifest(manifest_bytes(dir_fd, path))


def of_manifest(data: bytes) -> Checkpoint:
    """The checkpoint whose manifest is *data*; ImageError if that is none."""
    return Checkpoint(manifests.parse(data), hashlib.sha256(data).hexdigest())


def manifest_bytes(dir_fd: int, path: str) -> bytes:
    """The manifest as it is; ImageError if the checkpoint was never sealed."""
    try:
        fd = confine.open_regular(dir_fd, manifests.FILE_NAME)
    except FileNotFoundError:
        raise ManifestError(
            f"checkpoint {path} is incomplete: it has no {manifests.FILE_NAME}; wait until it is "
            "written or copied, or take it again"
        ) from None
    with open(fd, "rb") as file:
        return file.read(_MANIFEST_LIMIT_BYTES)


def read(dir_fd: int, path: str) -> Checkpoint:
    """The manifest, or one derived from the files of a checkpoint that another program made.

    The latter has upstream GRIT's layout: only a directory for each container. A checkpoint of
    grit-runtime without manifest is still being copied: ImageError.
    """
    names = os.listdir(dir_fd)
    if manifests.FILE_NAME in names:
        return read_manifest(dir_fd, path)
    containers = [
        name for name in sorted(names) if _has(dir_fd, name, "checkpoint", "inventory.img")
    ]
    unfinished = any(
        name.endswith(_UNFINISHED_SUFFIX) or _has(dir_fd, name, "config.dump") for name in names
    )
    if unfinished:
        return read_manifest(dir_fd, path)
    if not containers:
        raise ManifestError(
            f"{path} holds no checkpoint: it has neither {manifests.FILE_NAME} nor a container's "
            "checkpoint/inventory.img; wait until one is copied there, or name another directory"
        )
    return foreign_checkpoint(dir_fd, containers)


def foreign_checkpoint(dir_fd: int, containers: list[str]) -> Checkpoint:
    """A checkpoint from the directories of *containers*; its files cannot be verified."""
    identity = hashlib.sha256()
    files = _files(dir_fd)
    for name, size_bytes in sorted(files.items()):
        identity.update(f"{size_bytes} {name}\n".encode("utf-8", "surrogateescape"))
    for name in containers:
        # The inventory has the dump's own id, or at least its time.
        with open(confine.open_regular(dir_fd, f"{name}/checkpoint/inventory.img"), "rb") as file:
            identity.update(file.read(_INVENTORY_LIMIT_BYTES))
    return Checkpoint(
        manifests.for_foreign_dump(containers, files), identity.hexdigest(), is_verifiable=False
    )


@contextmanager
def opened(path: str) -> Iterator[tuple[int, Checkpoint]]:
    """The checkpoint in the directory or archive at *path*, for reading, with its fd.

    An archive is unpacked in a private directory, for as long as the block lasts.
    """
    from tempfile import TemporaryDirectory  # a restore has a place of its own

    with ExitStack() as stack:
        if os.path.isfile(path):
            directory = stack.enter_context(TemporaryDirectory())
            archive_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                dir_fd, sealed = unpack(archive_fd, f"{directory}/checkpoint", None, stack)
            except ImageError as error:
                raise ImageError(f"{path}: {error}") from error
        else:
            dir_fd = stack.enter_context(closing_fd(confine.open_dir(path)))
            sealed = read(dir_fd, path)
        yield dir_fd, sealed


def unpack(
    archive_fd: int, path: str, container: str | None, stack: ExitStack
) -> tuple[int, Checkpoint]:
    """Unpack an archive, and close it, into the new directory *path*: the checkpoint's directory in
    it, which *stack* closes, and what it is.

    An archive in checkpointctl's layout is of one container. If it does not name that (podman's do
    not), it is taken as *container*'s; if it names another than *container*, it is refused. An
    archive of a whole checkpoint with manifest is accepted too.
    """
    with closing_fd(archive_fd):
        os.makedirs(path, mode=0o700)
        os.mkdir(f"{path}/{_UNNAMED}", mode=0o700)
        dir_fd = stack.enter_context(closing_fd(confine.open_dir(path, _UNNAMED)))
        room = os.statvfs(dir_fd)
        limits = Limits(_ARCHIVE_LIMIT_ENTRIES, room.f_bavail * room.f_frsize)
        archive.unpack(archive_fd, dir_fd, limits)
    present = _files(dir_fd)
    if manifests.FILE_NAME in present:
        return dir_fd, read_manifest(dir_fd, path)
    for name in ("spec.dump", "checkpoint/inventory.img"):
        if name not in present:
            raise ImageError(f"archive: it has no {name}; expected a container engine's checkpoint")
    with open(confine.open_regular(dir_fd, "spec.dump"), "rb") as file:
        meant = checkpointctl.container_name(file.read(_SPEC_LIMIT_BYTES))
    known = container or meant
    if known and meant in {None, known}:
        os.rename(f"{path}/{_UNNAMED}", f"{path}/{known}")
    dir_fd = stack.enter_context(closing_fd(confine.open_dir(path)))
    return dir_fd, foreign_checkpoint(dir_fd, os.listdir(dir_fd))


def check_signature(dir_fd: int, path: str, trusted_keys: str) -> None:
    """ImageError unless one of the keys in the file *trusted_keys* has signed the manifest."""
    from grit_runtime.files import signature  # few configure it

    manifest = read_optional(dir_fd, manifests.FILE_NAME)
    signed = read_optional(dir_fd, manifests.SIGNATURE_NAME)
    if manifest is None or signed is None:
        raise SignatureError(
            f"checkpoint {path} is not signed, and the configuration's trusted_keys takes none "
            "without a signature"
        )
    try:
        signature.check(manifest, signed, trusted_keys)
    except ImageError as error:
        raise SignatureError(f"checkpoint {path}: {error}") from None


def open_optional(dir_fd: int, path: str) -> int | None:
    """Fd of a regular file that not every checkpoint has; None if it is missing."""
    try:
        return confine.open_regular(dir_fd, path)
    except FileNotFoundError:
        return None


def read_optional(dir_fd: int, path: str, limit_bytes: int = _MANIFEST_LIMIT_BYTES) -> bytes | None:
    """The content of such a file, cut at *limit_bytes*; None if it is missing."""
    fd = open_optional(dir_fd, path)
    if fd is None:
        return None
    with open(fd, "rb") as file:
        return file.read(limit_bytes)


def spec(dir_fd: int, container: str) -> dict[str, Any]:
    """config.json as the dumped container had it; empty if the checkpoint lacks it."""
    data = read_optional(dir_fd, f"{container}/spec.dump", _SPEC_LIMIT_BYTES)
    if data is None:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{container}/spec.dump: not JSON: {error}") from None
    return value if isinstance(value, dict) else {}


def write_sentinel(dir_fd: int) -> None:
    """Say to what waits as upstream's runtime does that all of the checkpoint is there."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    with open(confine.open_beneath(dir_fd, SENTINEL, flags), "wb") as file:
        file.write(_SENTINEL_CONTENT)


def contents(path: str, known: Mapping[str, FileDigest] = MappingProxyType({})) -> tuple[File, ...]:
    """Every file beneath the directory at *path*, with its digest: what a manifest lists.

    Those whose digests are *known* are not read.
    """
    with closing_fd(confine.open_dir(path)) as dir_fd:
        names = _files(dir_fd)
        digests = digest.digest_tree(dir_fd, names.keys() - known.keys())
    digests.update(known)
    return tuple(File(name, *digests[name]) for name in sorted(digests))


def differences(dir_fd: int, manifest: Manifest, unread: Container[str] = ()) -> list[str]:
    """Where the directory differs from its manifest, one line each.

    Reads every byte, except the files in *unread*.
    """
    listed = {file.path: file for file in manifest.files}
    sizes = _files(dir_fd)
    for name in (manifests.FILE_NAME, manifests.SIGNATURE_NAME, SENTINEL):
        sizes.pop(name, None)
    lines = [f"{path} is missing" for path in sorted(listed.keys() - sizes.keys())]
    lines += [f"{path} is not in the manifest" for path in sorted(sizes.keys() - listed.keys())]
    whole = []
    for path in sorted(listed.keys() & sizes.keys()):
        if sizes[path] == listed[path].size_bytes:
            whole.append(path)
        else:  # not read: a sparse file can claim any size
            lines.append(f"{path} has {sizes[path]} bytes, expected {listed[path].size_bytes}")
    return lines + corrupt_files(dir_fd, [listed[path] for path in whole if path not in unread])


def corrupt_files(dir_fd: int, files: Collection[File]) -> list[str]:
    """Which of the files are not what the manifest says, one line each; reads every byte."""
    wanted = {file.path: file.digest for file in files}
    digests = digest.digest_tree(dir_fd, wanted, wanted)
    return digest_mismatches(files, [digests[file.path].digest for file in files])


def digest_mismatches(files: Iterable[File], digests: Iterable[str]) -> list[str]:
    """Which of the files have other digests than the manifest says, one line each."""
    return [
        f"{file.path} is damaged: digest {value}, expected {file.digest}"
        for file, value in zip(files, digests, strict=True)
        if value != file.digest
    ]


def refuse(path: str, wrong: list[str]) -> None:
    """ImageError if anything is *wrong* with the checkpoint at *path*, a line each."""
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise DigestError(f"checkpoint {path}: {wrong[0]}{more}; copy or take it again")


def moved_memory(sealed: Checkpoint, container: manifests.Container) -> dict[str, File]:
    """The files, by path, that may hold memory CRIU has not dumped; verified when it is used."""
    if not sealed.is_verifiable:
        return {}
    prefix = f"{container.name}/"
    return {
        file.path: file
        for file in sealed.manifest.files
        if is_memory(file.path)
        and file.path.startswith(prefix)
        and file.size_bytes <= digest.MAX_FILE_BYTES
    }


def is_memory(path: str) -> bool:
    """Whether the file may hold memory that CRIU has not dumped."""
    return _MEMORY.fullmatch(path) is not None


def _has(dir_fd: int, *path: str) -> bool:
    """Whether something lies there, behind no link; what is no checkpoint is not walked for it."""
    *parents, name = path
    try:
        with closing_fd(confine.descend(dir_fd, parents)) as parent_fd:
            os.stat(name, dir_fd=parent_fd, follow_symlinks=False)
    except (FileNotFoundError, ImageError):  # or a parent is no directory
        return False
    return True


def _files(dir_fd: int) -> dict[str, int]:
    """The sizes, by path, of everything but directories."""
    entries = ((entry.path, entry.stat) for entry in confine.walk(dir_fd))
    return {path: stat.st_size for path, stat in entries if not S_ISDIR(stat.st_mode)}
