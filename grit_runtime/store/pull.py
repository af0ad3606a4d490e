"""Bringing a checkpoint from a store or a peer to this node.

It is put together in a directory beside its place, whose name says which checkpoint it is to be,
and renamed when all of it is verified and durable. What a killed pull has left there is hashed, and
what is right is kept.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager

from grit_runtime import log
from grit_runtime.errors import (
    AlreadyExistsError,
    DamagedError,
    GritError,
    RoomError,
    TamperedError,
    WrongKeyError,
)
from grit_runtime.files import checkpoint_dir, confine, digest, room, unfinished, verified
from grit_runtime.host import linux
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import manifest as manifests
from grit_runtime.startup.named import NamedTuple
from grit_runtime.store import catalog, damage, locks
from grit_runtime.store.receiving import Into, Receiving
from grit_runtime.store.records import Unlocked
from grit_runtime.store.stored_source import StoredSource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Protocol

    from grit_runtime.model.manifest import File, Manifest
    from grit_runtime.store.backend import Backend
    from grit_runtime.store.catalog import Entry
    from grit_runtime.store.keys import FileKey
    from grit_runtime.store.receiving import Source
    from grit_runtime.store.sending import Told

    class Announced(Protocol):
        """Whoever waits for the checkpoint; a restore begins with what is verified."""

        def is_ready(self, directory: str) -> None:
            """This directory beside its place has all but memory."""

        def is_whole(self) -> None:
            """It has memory too, and is not durable yet."""


_MEANWHILE = "was made while another checkpoint was brought to that name"
_SPARE_BYTES = 64 << 20  # for what else is written to the disk meanwhile


class Pulled(NamedTuple):
    """What has become of a pull."""

    path: str
    sha256: str
    size_bytes: int
    received_bytes: int
    was_here: bool = False


@contextmanager
def stored(store: Backend, entry: Entry, file_key: FileKey | None) -> Iterator[Source]:
    """The checkpoint *entry* of a store, which stays there while the block runs.

    DamagedError, TamperedError and WrongKeyError say what is wrong with it. What was found damaged
    is noted in the store, for the next push.
    """
    purpose = f"pull of {entry.namespace}/{entry.name}"
    with locks.shared_if_writable(store, purpose) as is_writable:
        unlocked = Unlocked(file_key)
        source = StoredSource(store, entry, catalog.read(store, entry, unlocked), unlocked)
        try:
            yield source
        finally:
            if is_writable:
                damage.note(store, source.damaged)


def bring(
    source: Source,
    entry: Entry,
    root: str,
    told: Told,
    *,
    replace: bool = False,
    announced: Announced | None = None,
) -> Pulled:
    """Bring the checkpoint *entry* into its place below *root*.

    Blocks until it is there, verified and durable. AlreadyExistsError if another one has the name,
    unless that is to be *replace*d; then this one is read if it is here, and replaced if it is
    damaged. RoomError before anything is received; DamagedError if the source gives another.
    *told* is as for a push; what it raises ends the pull, which a later one goes on with. Who is
    *announced* it to hears how far it is verified.
    """
    manifest = manifests.parse(source.manifest)
    size_bytes = manifest.size_bytes
    if size_bytes > digest.MAX_FILE_BYTES:
        raise DamagedError(
            f"{source.name}: {entry.namespace}/{entry.name} claims {size_bytes} bytes, expected at "
            f"most {digest.MAX_FILE_BYTES}; {source.remedy}"
        )
    final = f"{root}/{entry.namespace}/{entry.name}"
    with (
        room.named_if_full(f"checkpoint {final}"),
        _staging(root, entry) as (parent_fd, staging_fd, staging),
    ):
        seen = _there(parent_fd, entry.name, final)
        if seen == entry.sha256 and not (replace and _is_damaged(parent_fd, final, manifest)):
            confine.remove_tree(parent_fd, staging)  # a killed pull may have left something
            return Pulled(final, entry.sha256, size_bytes, 0, was_here=True)
        if seen is not None and not replace:
            raise _taken(final, "exists and is another checkpoint")

        def without_memory() -> None:
            _write_manifest(staging_fd, source)
            if announced:
                announced.is_ready(staging)

        into = Into(staging_fd, is_awaited=announced is not None)
        received_bytes = _receive(source, manifest.files, into, final, told, without_memory)
        if announced:
            announced.is_whole()
        linux.sync_filesystem(f"/proc/self/fd/{staging_fd}")
        # Before it has its name: a restore that waits for that looks for the record at once.
        verified.keep(staging_fd, final, verified.fingerprint(staging_fd))
        _publish(parent_fd, staging, final, seen)
    return Pulled(final, entry.sha256, size_bytes, received_bytes)


def fill(source: Source, files: Sequence[File], dir_fd: int, path: str, told: Told) -> int:
    """Bring all *files* of a checkpoint into the directory at *path* itself, whatever is in it.

    For a directory that cannot be renamed, being a mount of its own; its manifest, if there is
    one, comes last. Blocks until all is verified and durable; errors are those of `bring`. Returns
    how many bytes were received.
    """
    fcntl.flock(dir_fd, fcntl.LOCK_EX)
    listed = {file.path for file in files}
    for entry in list(confine.walk(dir_fd)):
        if confine.is_file(entry.stat) and entry.path not in listed:
            with closing_fd(confine.descend(dir_fd, entry.path.split("/")[:-1])) as parent_fd:
                os.unlink(entry.name, dir_fd=parent_fd)
    with room.named_if_full(f"checkpoint {path}"):
        into = Into(dir_fd, is_awaited=False)
        received_bytes = _receive(source, files, into, path, told, lambda: None)
        linux.sync_filesystem(f"/proc/self/fd/{dir_fd}")
        _write_manifest(dir_fd, source)
        linux.sync_filesystem(f"/proc/self/fd/{dir_fd}")
    return received_bytes


def _receive(
    source: Source,
    files: Sequence[File],
    into: Into,
    final: str,
    told: Told,
    without_memory: Callable[[], None],
) -> int:
    receiving = Receiving(source, files, told)
    try:
        receiving.prepare(into.fd)
        _require_room(into.fd, final, receiving.missing_bytes)
        receiving.run(into, without_memory)
    except (DamagedError, TamperedError, WrongKeyError) as error:
        raise type(error)(f"checkpoint {final}: {error}") from None
    return receiving.received_bytes


@contextmanager
def _staging(root: str, entry: Entry) -> Iterator[tuple[int, int, str]]:
    """Fds of the namespace's directory and of the one to put the checkpoint together in; its name.

    Waits for another pull of the same checkpoint.
    """
    os.makedirs(f"{root}/{entry.namespace}", mode=0o700, exist_ok=True)
    with (
        closing_fd(confine.open_dir(root, entry.namespace)) as parent_fd,
        unfinished.locked(parent_fd, entry.name, entry.sha256) as (staging_fd, staging),
    ):
        yield parent_fd, staging_fd, staging


def _there(parent_fd: int, name: str, path: str) -> str | None:
    """Which checkpoint has the *name*: "" for what is none, None if nothing has it."""
    try:
        with closing_fd(confine.descend(parent_fd, [name])) as dir_fd:
            return checkpoint_dir.read_manifest(dir_fd, path).sha256
    except FileNotFoundError:
        return None
    except GritError:
        return ""


def _is_damaged(parent_fd: int, final: str, manifest: Manifest) -> bool:
    """Whether the checkpoint that is here is not what its manifest says; reads all of it."""
    with closing_fd(confine.descend(parent_fd, [os.path.basename(final)])) as dir_fd:
        wrong = checkpoint_dir.differences(dir_fd, manifest)
    if wrong:
        log.info("a damaged checkpoint is replaced", path=final, reason=wrong[0])
    return bool(wrong)


def _require_room(staging_fd: int, final: str, size_bytes: int) -> None:
    disk = os.statvfs(staging_fd)
    free_bytes = disk.f_bavail * disk.f_frsize
    if free_bytes < size_bytes + _SPARE_BYTES:
        raise RoomError(
            f"{final}: {size_bytes / (1 << 20):.0f} MiB have to be written, and the filesystem has "
            f"{free_bytes / (1 << 20):.0f} MiB left; make room"
        )


def _write_manifest(staging_fd: int, source: Source) -> None:
    """Write what makes a directory a checkpoint; it has no checkpoint's name yet.

    What is there is left: a restore may read it, of a pull that is gone on with.
    """
    for name, data in (
        (manifests.SIGNATURE_NAME, source.signature),
        (manifests.FILE_NAME, source.manifest),
    ):
        if data and checkpoint_dir.read_optional(staging_fd, name) != data:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            with open(confine.open_beneath(staging_fd, name, flags), "wb") as file:
                file.write(data)


def _publish(parent_fd: int, staging: str, final: str, seen: str | None) -> None:
    """Give the checkpoint its name, in place of the one that was *seen* to have it before."""
    places = [f"/proc/self/fd/{parent_fd}/{name}" for name in (staging, os.path.basename(final))]
    try:
        linux.rename_new(*places)
    except FileExistsError:
        if seen is None:
            raise _taken(final, _MEANWHILE) from None
        linux.exchange(*places)
        if _there(parent_fd, staging, final) != seen:
            linux.exchange(*places)
            raise _taken(final, _MEANWHILE) from None
        confine.remove_tree(parent_fd, staging)
    os.fsync(parent_fd)


def _taken(final: str, what: str) -> AlreadyExistsError:
    return AlreadyExistsError(f"{final} {what}; remove it or say --replace")
