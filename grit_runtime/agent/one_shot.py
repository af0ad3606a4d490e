"""One checkpoint or one restore's preparation, and an end: what upstream's manager runs as a job.

The flags, the directories and what lies in them are those of upstream GRIT's agent. The node's
directory of a checkpoint is a mount of its own in such a job, so nothing is renamed onto it.
Whatever was done before is not done again: a job that has failed is started anew.
"""

from __future__ import annotations

import os
from contextlib import nullcontext, suppress

from grit_runtime import log
from grit_runtime.agent import engine
from grit_runtime.errors import InvalidArgumentError, ManifestError
from grit_runtime.files import checkpoint_dir, chunks, confine
from grit_runtime.host import linux
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import manifest as manifests
from grit_runtime.model.annotations import checkpoint_name
from grit_runtime.startup.named import NamedTuple
from grit_runtime.store.pull import fill
from grit_runtime.store.receiving import Received
from grit_runtime.store.stored_source import rank

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from grit_runtime.config import Config
    from grit_runtime.model.manifest import File
    from grit_runtime.store.receiving import Into, Wanted

_TAKING = ".grit"  # where the engine puts the checkpoint, in the directory that it is for


class Pod(NamedTuple):
    """The pod that a checkpoint is of; any of that name if *uid* is empty."""

    namespace: str
    name: str
    uid: str


def checkpoint(pod: Pod, src_dir: str, dst_dir: str, config: Config) -> None:
    """Take a checkpoint of the pod in *src_dir*, and make *dst_dir* the same.

    The pod runs on. Blocks until both are durable; the manifest comes last in both.
    """
    namespace, name = _names(src_dir)
    if not pod.name or pod.namespace != namespace:
        raise InvalidArgumentError(
            f"pod {pod.namespace}/{pod.name}: expected a pod of namespace {namespace}, which "
            f"--src-dir {src_dir} is of"
        )
    os.makedirs(src_dir, mode=0o700, exist_ok=True)
    with closing_fd(confine.open_dir(src_dir)) as dir_fd:
        if not _is_taken(dir_fd, src_dir, pod):
            wanted = {
                "target": f"{namespace}/{pod.name}",
                "name": name,
                "after": "running",
                "replace": True,  # of what was cut before it was moved up
                "pod_is_going": False,
                "strict": False,
                "uid": pod.uid,
                "capture": "",
                "tcp": "",
                "nccl": "",
            }
            taking = config._replace(checkpoint_root=f"{src_dir}/{_TAKING}")
            taken = f"{taking.checkpoint_root}/{namespace}/{name}"
            if not os.path.exists(f"{taken}/{manifests.FILE_NAME}"):
                engine.perform(wanted, taking)
            _move_up(dir_fd, taken, src_dir)
    _copy(src_dir, dst_dir)


def restore(src_dir: str, dst_dir: str) -> None:
    """Bring *dst_dir* from *src_dir*, verified, and then say that it is there as upstream does."""
    _names(dst_dir)
    _copy(src_dir, dst_dir)
    with closing_fd(confine.open_dir(dst_dir)) as dir_fd:
        checkpoint_dir.write_sentinel(dir_fd)
        linux.sync_filesystem(dst_dir)


class _Directory:
    """A directory as a source; each file is read once, and its digest decides."""

    remedy = "copy or take the checkpoint again"

    def __init__(self, dir_fd: int, path: str) -> None:
        self.name = f"directory {path}"
        self.manifest = checkpoint_dir.read_optional(dir_fd, manifests.FILE_NAME) or b""
        self.signature = checkpoint_dir.read_optional(dir_fd, manifests.SIGNATURE_NAME) or b""
        self._dir_fd = dir_fd

    def digests(self, _file: File) -> list[bytes]:
        return []

    def runs(self, wanted: list[Wanted]) -> Iterator[list[Wanted]]:
        ordered = sorted(wanted, key=lambda one: (rank(one.file), one.file.path, one.number))
        return ([one] for one in ordered)

    def apart(self, _into: Into, _size_bytes: int) -> AbstractContextManager[None]:
        return nullcontext()

    def receive(self, run: Sequence[Wanted]) -> Iterator[Received]:
        for wanted in run:
            data = memoryview(bytearray(wanted.size_bytes))
            with closing_fd(confine.open_regular(self._dir_fd, wanted.file.path)) as fd:
                is_data = chunks.read(fd, wanted.file.path, wanted.offset, data)
            yield Received(wanted, data if is_data else None, wanted.size_bytes)


def _copy(src_dir: str, dst_dir: str) -> None:
    """Make *dst_dir* the checkpoint that *src_dir* is, if it is not that already."""
    os.makedirs(dst_dir, mode=0o700, exist_ok=True)
    with (
        closing_fd(confine.open_dir(src_dir)) as src_fd,
        closing_fd(confine.open_dir(dst_dir)) as dst_fd,
    ):
        sealed = checkpoint_dir.read(src_fd, src_dir)
        if sealed.is_verifiable and sealed.sha256 == _sha256(dst_fd, dst_dir):
            log.info("the checkpoint is there already", path=dst_dir)
            return
        source = _Directory(src_fd, src_dir)
        files = sealed.manifest.files if sealed.is_verifiable else _unlisted(src_dir)
        _require_no_other(dst_fd, dst_dir, files)
        received_bytes = fill(source, files, dst_fd, dst_dir, lambda *_: None)
    log.info("the checkpoint is copied", path=dst_dir, size_bytes=received_bytes)


def _require_no_other(dir_fd: int, path: str, files: Iterable[File]) -> None:
    """InvalidArgumentError if the directory holds what a checkpoint of these files would not.

    What is in its containers' directories, and not of the checkpoint, is removed later.
    """
    own = {manifests.FILE_NAME, manifests.SIGNATURE_NAME, checkpoint_dir.SENTINEL, _TAKING}
    own |= {file.path.partition("/")[0] for file in files}
    if others := sorted(set(os.listdir(dir_fd)) - own):
        raise InvalidArgumentError(
            f"{path} holds {others[0]}, which is not of the checkpoint; remove it, or name another "
            "directory"
        )


def _unlisted(src_dir: str) -> tuple[File, ...]:
    """The files of a checkpoint without a manifest, read for their digests."""
    found = checkpoint_dir.contents(src_dir)
    return tuple(file for file in found if file.path != checkpoint_dir.SENTINEL)


def _is_taken(dir_fd: int, path: str, pod: Pod) -> bool:
    """Whether the directory is a sealed checkpoint of the pod; ManifestError if of another."""
    with suppress(ManifestError):
        taken = checkpoint_dir.read_manifest(dir_fd, path).manifest.pod
        if (taken.namespace, taken.name) == pod[:2] and pod.uid in {"", taken.uid}:
            return True
        raise InvalidArgumentError(
            f"{path} is a checkpoint of pod {taken.namespace}/{taken.name}, uid {taken.uid}; name "
            "another directory"
        )
    return False


def _sha256(dir_fd: int, path: str) -> str:
    with suppress(ManifestError):
        return checkpoint_dir.read_manifest(dir_fd, path).sha256
    return ""


def _move_up(dir_fd: int, taken: str, src_dir: str) -> None:
    """Move all that is in *taken* into the directory that it is for, the manifest last."""
    with closing_fd(confine.open_dir(taken)) as taken_fd:
        last = {manifests.FILE_NAME: 1}
        for name in sorted(os.listdir(taken_fd), key=lambda name: (last.get(name, 0), name)):
            if name in last:
                linux.sync_filesystem(src_dir)
            elif os.path.isdir(f"{src_dir}/{name}"):
                confine.remove_tree(dir_fd, name)
            os.rename(name, name, src_dir_fd=taken_fd, dst_dir_fd=dir_fd)
    confine.remove_tree(dir_fd, _TAKING)
    linux.sync_filesystem(src_dir)


def _names(path: str) -> tuple[str, str]:
    """The namespace and the name that a checkpoint's directory is of."""
    namespace, name = path.rstrip("/").split("/")[-2:] if path.count("/") > 1 else ("", "")
    if not path.startswith("/"):
        raise InvalidArgumentError(f"directory {path!r}: expected /.../NAMESPACE/NAME")
    return checkpoint_name(namespace), checkpoint_name(name)
