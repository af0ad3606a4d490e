"""A checkpoint's directory: reaching it safely, reading its manifest, holding it to its word.

Layout: design of the directory in the README; every path below the root is opened link by link
without following symbolic links.
"""

from __future__ import annotations

import hashlib
import os
from stat import S_ISDIR
from typing import NamedTuple

from grit_runtime.errors import ImageError, NotFoundError
from grit_runtime.host import confine, digest
from grit_runtime.model import manifest as manifests
from grit_runtime.model.manifest import File

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from grit_runtime.model.manifest import Manifest

CONTAINER_LOG_LIMIT_BYTES = 10 << 20

_MANIFEST_LIMIT_BYTES = 64 << 20


class Sealed(NamedTuple):
    """A manifest, and the sha256 (hex) of its bytes, which names this very checkpoint."""

    manifest: Manifest
    sha256: str


def open_named(root: str, names: Sequence[str]) -> int:
    """Fd of the directory that *names* lead to beneath *root*; NotFoundError if there is none."""
    try:
        return confine.open_dir(root, *names)
    except FileNotFoundError:
        raise NotFoundError(
            f"checkpoint {'/'.join((root, *names))} does not exist on this node; "
            "is it copied here and is the name right?"
        ) from None


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


def contents(path: str) -> tuple[File, ...]:
    """Every file beneath the directory at *path*, with its digest: what a manifest lists."""
    dir_fd = confine.open_dir(path)
    try:
        digests = digest.digest_tree(dir_fd, sorted(_files(dir_fd)))
    finally:
        os.close(dir_fd)
    return tuple(File(name, size, value) for name, (size, value) in digests.items())


def problems(dir_fd: int, manifest: Manifest) -> list[str]:
    """Where the directory differs from its manifest, one line each; reads every byte."""
    wanted = {file.path: file for file in manifest.files}
    found = _files(dir_fd)
    found.pop(manifests.FILE_NAME, None)
    lines = [f"{path} is missing" for path in sorted(wanted.keys() - found.keys())]
    lines += [f"{path} is not in the manifest" for path in sorted(found.keys() - wanted.keys())]
    whole = []
    for path in sorted(wanted.keys() & found.keys()):
        if found[path] == wanted[path].size_bytes:
            whole.append(path)
        else:  # not read: a sparse file can claim any size
            lines.append(f"{path} has {found[path]} bytes, expected {wanted[path].size_bytes}")
    for path, (_, value) in digest.digest_tree(dir_fd, whole).items():
        if value != wanted[path].digest:
            lines.append(f"{path} is damaged: digest {value}, expected {wanted[path].digest}")
    return lines


def _files(dir_fd: int) -> dict[str, int]:
    """The size of everything that is no directory."""
    entries = ((entry.path, entry.stat) for entry in confine.walk(dir_fd))
    return {path: stat.st_size for path, stat in entries if not S_ISDIR(stat.st_mode)}
