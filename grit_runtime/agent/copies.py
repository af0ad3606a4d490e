"""The checkpoints that the agent has brought to this node, and making room for more.

Of each there is a record, whose time is when it was last brought or asked for. Over the quota the
one that was used least recently goes. None goes that a restore is about to read: what is announced,
held, or used within the last ten minutes, and what a container is restored from, until ten minutes
after it was started.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress

from grit_runtime import log, paths
from grit_runtime.errors import AlreadyExistsError, FailedPreconditionError
from grit_runtime.files import arrivals, checkpoint_dir, confine, unfinished, verified
from grit_runtime.host import durable, journal
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model.restore_steps import STEPS, Started
from grit_runtime.model.steps import has
from grit_runtime.pod import held_pods, lives
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

DIR = f"{paths.STATE_DIR}/agent/copies"

_RECENT_S = 600.0


class Copy(NamedTuple):
    """A checkpoint that the agent has brought."""

    namespace: str
    name: str
    sha256: str
    size_bytes: int
    used_s: float  # since the epoch


def note(namespace: str, name: str, sha256: str, size_bytes: int) -> None:
    """Record that the agent has brought a checkpoint, or was asked for it again.

    It is on the medium when this returns.
    """
    path = _path(namespace, name)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    durable.write(path, {"sha256": sha256, "size_bytes": size_bytes})


def known(namespace: str, name: str, sha256: str) -> bool:
    """Whether the agent has brought this very checkpoint."""
    return any(one[:3] == (namespace, name, sha256) for one in every())


def every() -> list[Copy]:
    """All, the least recently used first; a record that means nothing is passed over."""
    return sorted(_read(), key=lambda copy: copy.used_s)


def evict(root: str, quota_bytes: int) -> None:
    """Remove copies until the rest is within the quota, as far as none of them is in use.

    What pulls have left goes first.
    """
    copies, left = every(), unfinished.left(root)
    over_bytes = sum(copy.size_bytes for copy in copies) - quota_bytes
    over_bytes += sum(one.size_bytes for one in left)
    for one in left:
        if over_bytes > 0 and unfinished.remove(root, one):
            over_bytes -= one.size_bytes
    for copy in copies:
        if over_bytes <= 0:
            return
        if not (_recent_use(copy) or _remove(root, copy, _RECENT_S)):
            log.info("a copy is removed", name=copy.name, size_bytes=copy.size_bytes)
            over_bytes -= copy.size_bytes
    if over_bytes > 0:
        log.warning("copies in use are over the quota", over_bytes=over_bytes)


def give_way(root: str, namespace: str, name: str) -> None:
    """Remove a copy of that name, unless something needs it: one that is taken here may have it."""
    for copy in every():
        if (copy.namespace, copy.name) == (namespace, name) and not _use(copy, 0.0):
            _remove(root, copy, 0.0)


def make_way(root: str, namespace: str, name: str, sha256: str) -> None:
    """Remove a copy of that name which is another than the one with that manifest.

    AlreadyExistsError if it is none of the agent's, or `evict` would not remove it.
    """
    here = _sha256_of(root, namespace, name)
    if here in {"", sha256}:
        return
    why = "was not brought by this node's agent"
    for copy in every():
        if copy[:3] == (namespace, name, here):
            why = _recent_use(copy) or _remove(root, copy, _RECENT_S)
    if why:
        raise AlreadyExistsError(
            f"checkpoint {root}/{namespace}/{name} exists and is another one, sha256:{here}, which "
            f"{why}; remove it when nothing needs it, or choose another name"
        )


def remove(root: str, namespace: str, name: str, deleted_pod_uid: str = "") -> None:
    """Remove this node's checkpoint of that name, brought or taken here; nothing if it has none.

    What a pull of it has left goes too. FailedPreconditionError if something still needs it,
    such as a pod that is held for it, unless it is *deleted* and its sandbox gone.
    """
    held_pods.drop_gone()
    path = f"{root}/{namespace}/{name}"
    copy = Copy(namespace, name, _sha256_of(root, namespace, name), 0, 0.0)
    if use := _use(copy, 0.0, deleted_pod_uid) or _remove(root, copy, 0.0, deleted_pod_uid):
        raise FailedPreconditionError(f"checkpoint {path} {use}: remove it when that is over")
    for one in unfinished.left(root):
        if (one.namespace, one.name) == (namespace, name):
            unfinished.remove(root, one)


def _remove(root: str, copy: Copy, settled_s: float, deleted_pod_uid: str = "") -> str:
    """Remove a copy and its record; what uses it after all, "" if it is gone."""
    gone = f".{copy.name}.evicted"
    path = f"{root}/{copy.namespace}/{copy.name}"
    try:
        parent_fd = confine.open_dir(root, copy.namespace)
    except FileNotFoundError:
        _forget(copy)
        return ""
    with closing_fd(parent_fd):
        with suppress(FileNotFoundError), closing_fd(confine.descend(parent_fd, [copy.name])) as fd:
            if checkpoint_dir.read_manifest(fd, path).sha256 == copy.sha256:
                confine.remove_tree(parent_fd, gone)
                os.rename(copy.name, gone, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
                # A restore may have opened it in between.
                if use := _use(copy, settled_s, deleted_pod_uid):
                    os.rename(gone, copy.name, src_dir_fd=parent_fd, dst_dir_fd=parent_fd)
                    return use
                verified.forget(copy.sha256)
        confine.remove_tree(parent_fd, gone)
    _forget(copy)
    return ""


def _sha256_of(root: str, namespace: str, name: str) -> str:
    """Of the manifest of what is in a checkpoint's place; "" if there is nothing."""
    with suppress(FileNotFoundError), closing_fd(confine.open_dir(root, namespace, name)) as dir_fd:
        return checkpoint_dir.read_manifest(dir_fd, f"{root}/{namespace}/{name}").sha256
    return ""


def _forget(copy: Copy) -> None:
    with suppress(FileNotFoundError):  # it was taken here, not brought
        os.unlink(_path(copy.namespace, copy.name))


def _recent_use(copy: Copy) -> str:
    """What it is in use for, or was until a while ago."""
    if time.time() - copy.used_s < _RECENT_S:
        return "was brought or asked for within the last ten minutes"
    return _use(copy, _RECENT_S)


def _use(copy: Copy, settled_s: float, deleted_pod_uid: str = "") -> str:
    """What the copy is in use for, if it is; a restore is over *settled_s* after the start.

    A pod that is deleted has no use for it. Its hold stays: kubelet may not have heard of that, and
    would start it from its image.
    """
    if arrivals.is_alive(copy.namespace, copy.name):
        return "is on its way to this node"
    for hold in held_pods.every():
        is_meant = hold.manifest_sha256 == copy.sha256
        if is_meant and not held_pods.is_deleted(hold, deleted_pod_uid):
            return f"is what pod {hold.name} is held for"
    attempts = journal.beneath(journal.PODS_DIR, f"*/*/{lives.ATTEMPT_JOURNAL}")
    for life in lives.of(copy.sha256, but=""):
        if any(_is_new(path, settled_s) for path in attempts):
            return f"is what pod {life.pod} is just being restored from"
    return ""


def _is_new(path: str, settled_s: float) -> bool:
    """Whether an attempt has not ended in a container that was started a while ago."""
    try:
        age_s = time.time() - os.stat(path).st_mtime
        return age_s < settled_s or not has(journal.read(path, STEPS), Started)
    except FileNotFoundError:  # it has just ended
        return False


def _read() -> Iterator[Copy]:
    for path in journal.beneath(DIR, "*/*.json"):
        *_, namespace, file_name = path.split("/")
        name = file_name.removesuffix(".json")
        with suppress(FileNotFoundError), open(path, "rb") as file:
            used_s = os.fstat(file.fileno()).st_mtime
            match _fields(file.read()):
                case {"sha256": str(sha256), "size_bytes": int(size_bytes)}:
                    yield Copy(namespace, name, sha256, size_bytes, used_s)
                case _:
                    text = "the record of a copy means nothing: it is passed over; remove it"
                    log.warning(text, path=path)


def _fields(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:  # it was cut, as an older grit's could be
        return None


def _path(namespace: str, name: str) -> str:
    return f"{DIR}/{namespace}/{name}.json"
