"""Putting a sealed checkpoint into a store.

Every chunk is read once, hashed, and written to a pack unless it is zeros or already in the store.
The index is written when all packs are durable and every file's digest is the manifest's. A push
that was killed is gone on with: its packs say what is in them.
"""

from __future__ import annotations

from grit_runtime import log
from grit_runtime.errors import (
    DamagedError,
    GritError,
    NewerFormatError,
    NotFoundError,
    TamperedError,
    UnavailableError,
    WrongKeyError,
)
from grit_runtime.files import checkpoint_dir, confine
from grit_runtime.host import process
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import manifest as manifests
from grit_runtime.model.annotations import checkpoint_name
from grit_runtime.model.stored import VERSION, Chunk, Index, Key, Pack, StoredFile
from grit_runtime.proto import store_pb2
from grit_runtime.startup.named import NamedTuple
from grit_runtime.store import backend, catalog, damage, locks, packs, sources
from grit_runtime.store.catalog import Entry
from grit_runtime.store.records import Unlocked
from grit_runtime.store.sending import Sending, Target
from grit_runtime.store.stored_source import StoredSource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from grit_runtime.files.checkpoint_dir import Checkpoint
    from grit_runtime.model.manifest import File
    from grit_runtime.store.backend import Backend
    from grit_runtime.store.keys import DataKey, FileKey
    from grit_runtime.store.locks import Lock
    from grit_runtime.store.sending import Told

# So many of the namespace's newest checkpoints are looked at for chunks to refer to.
_LOOK_AT_NEWEST = 8
_KEY_NAME = "key"


class Pushed(NamedTuple):
    """What has become of a push."""

    entry: Entry
    size_bytes: int
    sent_bytes: int  # as they are stored
    reused_bytes: int  # of chunks that the store had already
    was_there: bool = False


class _Local(NamedTuple):
    """A checkpoint of this node, as it was when its push began."""

    dir_fd: int
    path: str
    manifest: bytes
    signature: bytes
    sealed: Checkpoint
    entry: Entry


def push(
    path: str, store: Backend, file_key: FileKey | None, told: Told, *, begun: str = ""
) -> Pushed:
    """Put the checkpoint in the directory *path* into *store*, encrypted if there is a *file_key*.

    Blocks until it is durable there. *told* is called, from any thread, with bytes of the
    checkpoint that are done and bytes that were sent. DigestError if the checkpoint is damaged,
    OSError from the store, UnavailableError if that was cut off, or this process stopped, for so
    long that others may have removed what was sent. What is left of that is used by the next push
    of it. What `begin` has sent, in packs that it has *begun*, is not sent again.
    """
    with closing_fd(confine.open_dir(path)) as dir_fd:
        local = _opened(dir_fd, path)
        entry = local.entry
        size_bytes = local.sealed.manifest.size_bytes
        sources.check_listing(dir_fd, path, local.sealed)
        with locks.shared(store, f"push of {entry.namespace}/{entry.name}") as lock:
            undamaged = damage.undamaged(store)
            if _is_there(store, local, Unlocked(file_key), undamaged):
                return Pushed(entry, size_bytes, 0, 0, was_there=True)
            target = _target(store, entry, file_key, begun, undamaged)
            sending = _sent(local, target, told)
            _write_index(local, target, sending, lock)
            for prefix in {target.prefix, begun} - {""}:
                store.remove(prefix + _KEY_NAME)
    return Pushed(entry, size_bytes, sending.sent_bytes, sending.reused_bytes)


def begin(directory: str, files: Sequence[File], store: Backend, file_key: FileKey | None) -> str:
    """Send *files*, beneath *directory*, of a checkpoint that is not sealed yet.

    Blocks until they are durable in the store; returns how their packs' names begin. If no push
    refers to these, they are garbage.
    """
    prefix = f"packs/{process.new_token()}/"
    with closing_fd(confine.open_dir(directory)) as dir_fd, locks.shared(store, "early push"):
        target = Target(store, prefix, *_data_key(store, prefix, file_key), {})
        sending = Sending(target, dir_fd, [file.path for file in files], lambda _done, _sent: None)
        sending.run(sources.portions(files))
    return prefix


def _opened(dir_fd: int, path: str) -> _Local:
    manifest = checkpoint_dir.manifest_bytes(dir_fd, path)
    signature = checkpoint_dir.read_optional(dir_fd, manifests.SIGNATURE_NAME) or b""
    sealed = checkpoint_dir.of_manifest(manifest)
    namespace = checkpoint_name(sealed.manifest.pod.namespace)
    entry = Entry(namespace, checkpoint_name(sealed.manifest.name), sealed.sha256, 0.0)
    return _Local(dir_fd, path, manifest, signature, sealed, entry)


def _sent(local: _Local, target: Target, told: Told) -> Sending:
    """All of the checkpoint's files, in packs, and compared with its manifest."""
    files = local.sealed.manifest.files
    sending = Sending(target, local.dir_fd, [file.path for file in files], told)
    sending.run(sources.portions(files))
    for file, read in zip(files, sending.read, strict=True):
        sources.check_digest(local.path, file, read)
    if checkpoint_dir.read_optional(local.dir_fd, manifests.FILE_NAME) != local.manifest:
        raise NotFoundError(
            f"checkpoint {local.path} went while it was pushed; push the one that is there now"
        )
    return sending


def _write_index(local: _Local, target: Target, sending: Sending, lock: Lock) -> None:
    """Write what refers to the packs, if none of them can have been removed meanwhile."""
    files = tuple(
        StoredFile(file.path, tuple(read.chunks[number] for number in sorted(read.chunks)))
        for file, read in zip(local.sealed.manifest.files, sending.read, strict=True)
    )
    index = Index(local.manifest, local.signature, sending.packs, files)
    header = _header(local.sealed, target, sending.sent_bytes)
    lock.require()
    catalog.write(target.store, local.entry, header, index, target.data_key)
    try:
        lock.require()
    except UnavailableError:
        target.store.remove(local.entry.object_name)
        raise


def _is_there(
    store: Backend, local: _Local, unlocked: Unlocked, undamaged: Mapping[str, int]
) -> bool:
    """Whether it can be pulled from there, as far as that can be said without reading its packs."""
    entry = local.entry
    there = catalog.entries(store, entry.namespace, entry.name)
    if all(other.sha256 != entry.sha256 for other in there):
        return False
    try:
        index = catalog.read(store, entry, unlocked)
        source = StoredSource(store, entry, index, unlocked)
        for file in local.sealed.manifest.files:
            source.digests(file)
    except (WrongKeyError, NewerFormatError):
        return True
    except (DamagedError, TamperedError) as error:
        log.info("it is pushed again", checkpoint=entry.name, reason=error)
        return False
    return len(damage.usable(index, undamaged)) == len(index.packs)


def _target(
    store: Backend,
    entry: Entry,
    file_key: FileKey | None,
    begun: str,
    undamaged: Mapping[str, int],
) -> Target:
    prefix = f"packs/{entry.sha256[:32]}/"
    key, data_key = _data_key(store, prefix, file_key)
    known = _in_checkpoints(store, entry, Unlocked(file_key), undamaged)
    known |= _in_packs_left(store, undamaged, prefix, key, data_key)
    if begun:
        known |= _in_packs_left(store, undamaged, begun, *_data_key(store, begun, file_key))
    return Target(store, prefix, key, data_key, known)


def _data_key(
    store: Backend, prefix: str, file_key: FileKey | None
) -> tuple[Key | None, DataKey | None]:
    """The data key of this push, or of a killed one that it goes on with; none without a key."""
    if file_key is None:
        return None, None
    try:
        message = store_pb2.Key.FromString(store.read(prefix + _KEY_NAME, size_bytes=4096))
        key = Key(message.id, message.wrapped)
        return key, file_key.unwrap(key)
    except (NotFoundError, WrongKeyError, TamperedError):
        key, data_key = file_key.new_data_key()
    wrapped = store_pb2.Key(id=key.id, wrapped=key.wrapped)
    backend.put(store, prefix + _KEY_NAME, wrapped.SerializeToString())
    return key, data_key


def _in_checkpoints(
    store: Backend, entry: Entry, unlocked: Unlocked, undamaged: Mapping[str, int]
) -> dict[bytes, tuple[Pack, Chunk]]:
    """The chunks of the namespace's newest checkpoints, by their digests.

    One that cannot be read is nothing to refer to. What is encrypted otherwise than this push is
    not referred to either: a reader of one has only its key.
    """
    known: dict[bytes, tuple[Pack, Chunk]] = {}
    for other in catalog.entries(store, entry.namespace)[:_LOOK_AT_NEWEST]:
        try:
            index = catalog.read(store, other, unlocked)
        except GritError as error:
            log.info("not referred to", checkpoint=other.name, reason=error)
            continue
        usable = {
            number
            for number in damage.usable(index, undamaged)
            if (index.packs[number].key is not None) == unlocked.has_key
        }
        for file in index.files:
            for chunk in file.chunks:
                if chunk.pack in usable:
                    known.setdefault(chunk.digest, (index.packs[chunk.pack], chunk))
    return known


def _in_packs_left(
    store: Backend,
    undamaged: Mapping[str, int],
    prefix: str,
    key: Key | None,
    data_key: DataKey | None,
) -> dict[bytes, tuple[Pack, Chunk]]:
    """The chunks that a killed push of the same checkpoint has left in the store."""
    known: dict[bytes, tuple[Pack, Chunk]] = {}
    for pack in store.listed(prefix):
        if pack.name == prefix + _KEY_NAME or pack.name not in undamaged:
            continue
        try:
            chunks = packs.read_contents(store, pack, data_key)
        except (DamagedError, TamperedError) as error:
            log.info("not gone on with", pack=pack.name, reason=error)
            continue
        known |= {chunk.digest: (Pack(pack.name, key), chunk) for chunk in chunks}
    return known


def _header(sealed: Checkpoint, target: Target, sent_bytes: int) -> store_pb2.Header:
    manifest = sealed.manifest
    header = store_pb2.Header(
        version=VERSION,
        created=manifest.created,
        pushed=log.rfc3339(),
        pod=manifest.pod.name,
        containers=[container.name for container in manifest.containers],
        size_bytes=manifest.size_bytes,
        stored_bytes=sent_bytes,
        gpu_bytes=manifest.gpu_bytes,
    )
    if target.key:
        header.key.CopyFrom(store_pb2.Key(id=target.key.id, wrapped=target.key.wrapped))
    return header
