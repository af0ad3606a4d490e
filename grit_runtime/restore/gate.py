"""The gate: a restore waits for a checkpoint that is announced and not here yet.

What was announced is what is restored. What lies there under the same name meanwhile (an older
checkpoint, a part of one, somebody else's) is not.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from contextlib import ExitStack, suppress

from grit_runtime import log
from grit_runtime.errors import ArrivalFailedError, ImageError, NotArrivedError, PodStateError
from grit_runtime.files import arrivals, checkpoint_dir, confine
from grit_runtime.host.changes import Changes
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import arrival as model
from grit_runtime.model import manifest as manifests
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from grit_runtime.model.arrival import Arrival
    from grit_runtime.restore.attempts import Request

# A controller sees where the pod is when kubelet does, and asks for the checkpoint then; one that
# takes over from another has waited for the other's Lease (15 s).
_ANNOUNCED_S = 30.0
_NAMESPACE = re.compile(r"/proc/(\d+)/ns/\w+")


class Place(NamedTuple):
    """The checkpoint that is asked for."""

    root: str
    namespace: str
    name: str
    manifest_sha256: str = ""  # hex, of the only acceptable one, if it is known

    @property
    def path(self) -> str:
        return f"{self.root}/{self.namespace}/{self.name}"


def passed(request: Request, timeline: log.Timeline) -> Request:
    """The request, of the checkpoint that was announced, once that is here, but for its memory.

    Blocks for up to `restore_wait_s`, and no longer than the pod's sandbox lives; errors as of
    `wait`. Without an announcement of a checkpoint that the pod may have, nothing is waited for;
    if the pod names its digest, somebody knows of it, and may announce it in a moment.
    """
    if len(request.order.path) != 2:  # what is announced is <namespace>/<name>
        return request
    place = _place(request)
    begin = time.monotonic()
    with ExitStack() as stack:
        sandbox_fd = _sandbox(request.spec, stack)
        arrival = _announced(place, sandbox_fd)
        if arrival is None:
            return request
        log.info("waiting until it has arrived", checkpoint=place.path, source=arrival.source)
        arrived = _wait(place, request.restore_wait_s, sandbox_fd, lambda one: bool(one.ready))
    timeline.add("arrival", seconds=time.monotonic() - begin)
    if not arrived.manifest_sha256:
        return request
    order = request.order._replace(manifest_sha256=arrived.manifest_sha256)
    return request._replace(order=order, arriving=arrived.directory)


def memory_is_here(request: Request, timeline: log.Timeline) -> None:
    """Wait until the memory of a checkpoint is here whose restore has begun without; as `wait`.

    The tasks that it is for stand meanwhile.
    """
    if not request.arriving:
        return
    place = _place(request)
    with timeline.phase("arrival of memory"):
        # It need not be durable: its files are open, and read by their digests.
        arrived = _wait(place, request.restore_wait_s, -1, lambda one: one.is_whole)
    if not (arrived.directory or _has(place, place.manifest_sha256)):
        raise ArrivalFailedError(
            f"checkpoint {place.path} does not come to this node: its transfer has ended without "
            "it; start it again"
        )


def _place(request: Request) -> Place:
    namespace, name = request.order.path
    return Place(request.checkpoint_root, namespace, name, request.order.manifest_sha256)


def _acceptable(place: Place) -> Arrival | None:
    """The announcement of the checkpoint, if it is of one that is acceptable."""
    arrival = arrivals.of(place.root, place.namespace, place.name)
    wanted = place.manifest_sha256
    return arrival if arrival and wanted in ("", arrival.manifest_sha256) else None


def _announced(place: Place, sandbox_fd: int) -> Arrival | None:
    """The announcement, if there is one; waited for if the checkpoint is known and not here."""
    end = time.monotonic() + (_ANNOUNCED_S if place.manifest_sha256 else 0)
    with Changes() as changes:
        while True:
            changes.watch(_nearest(arrivals.directory(place.namespace, place.name)))
            arrival = _acceptable(place)
            left_s = end - time.monotonic()
            if arrival or left_s <= 0 or _has(place, place.manifest_sha256):
                return arrival
            _wait_for(changes, left_s, sandbox_fd, place)


def _wait_for(changes: Changes, left_s: float, sandbox_fd: int, place: Place) -> None:
    """Until something may have changed; PodStateError if the sandbox ends meanwhile."""
    if changes.wait(left_s, [sandbox_fd]):
        raise PodStateError(f"the pod has ended while it waited for checkpoint {place.path}")


class Arrived(NamedTuple):
    """What there is: the manifest's digest, "" if any will do, and where, if not in its place."""

    manifest_sha256: str
    directory: str = ""  # beside its place, with as much as is enough


def wait(place: Place, wait_s: float, sandbox_fd: int = -1) -> str:
    """Block until the announced checkpoint is here; the sha256 of the manifest that it must have.

    That is "" if any will do. It also returns when the announcement is withdrawn: whoever opens the
    checkpoint sees what that has left. NotArrivedError after *wait_s*; ArrivalFailedError if it
    does not come; PodStateError when the process of the pidfd *sandbox_fd* ends.
    """
    return _wait(place, wait_s, sandbox_fd, lambda _: False).manifest_sha256


def _wait(
    place: Place, wait_s: float, sandbox_fd: int, is_enough: Callable[[Arrival], bool]
) -> Arrived:
    expected = place.manifest_sha256
    end = time.monotonic() + wait_s
    with Changes() as changes:
        while True:
            _watch(place, changes)
            arrival = _acceptable(place)
            if arrival is None:
                return Arrived(expected)
            expected = arrival.manifest_sha256
            if _is_here(place, arrival):
                return Arrived(expected)
            if is_enough(arrival) and not arrival.failed:
                return Arrived(expected, arrival.ready)
            left_s = end - time.monotonic()
            if arrival.failed or left_s <= 0:
                raise _not_here(place, arrival, wait_s)
            _wait_for(changes, left_s, sandbox_fd, place)


def _sandbox(spec: dict[str, Any], stack: ExitStack) -> int:
    """Pidfd of the process whose namespaces the container is to join; -1 without one."""
    for namespace in spec["linux"]["namespaces"]:
        if found := _NAMESPACE.fullmatch(namespace.get("path", "")):
            try:
                return stack.enter_context(closing_fd(os.pidfd_open(int(found[1]))))
            except ProcessLookupError:
                raise PodStateError("the pod's sandbox has ended; kubelet makes another") from None
    return -1


def _watch(place: Place, changes: Changes) -> None:
    """Watch the announcement, and what there is of the way to the checkpoint.

    Each is watched before it is looked at, so no change is missed.
    """
    changes.watch(arrivals.directory(place.namespace, place.name))
    root = ""
    while root != (root := _nearest(place.root)):  # it may have been made before it was watched
        changes.watch(root)
    if root == place.root:
        with suppress(FileNotFoundError, ImageError):
            for names in ([place.namespace], [place.namespace, place.name]):
                with closing_fd(confine.open_dir(root, *names)) as fd:
                    changes.watch(f"/proc/self/fd/{fd}")


def _nearest(path: str) -> str:
    """The directory, or the nearest one above it that exists."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _is_here(place: Place, arrival: Arrival) -> bool:
    """Whether what is announced is here whole. Others' checkpoints end with a sentinel."""
    if arrival.manifest_sha256:
        return _has(place, arrival.manifest_sha256)
    try:
        dir_fd = confine.open_dir(place.root, place.namespace, place.name)
    except (FileNotFoundError, ImageError):
        return False
    with closing_fd(dir_fd), suppress(FileNotFoundError, ImageError):
        manifest = checkpoint_dir.read_optional(dir_fd, manifests.FILE_NAME)
        sentinel = os.stat(checkpoint_dir.SENTINEL, dir_fd=dir_fd, follow_symlinks=False)
        return manifest is None and sentinel.st_ctime >= model.begun_s(arrival)
    return False


def _has(place: Place, sha256: str) -> bool:
    """Whether a sealed checkpoint with this manifest is in its place."""
    with suppress(FileNotFoundError, ImageError):
        with closing_fd(confine.open_dir(place.root, place.namespace, place.name)) as dir_fd:
            manifest = checkpoint_dir.read_optional(dir_fd, manifests.FILE_NAME) or b""
        return hashlib.sha256(manifest).hexdigest() == sha256
    return False


def _not_here(
    place: Place, arrival: Arrival, wait_s: float
) -> NotArrivedError | ArrivalFailedError:
    if arrival.failed:
        return ArrivalFailedError(
            f"checkpoint {place.path} does not come to this node: its transfer from "
            f"{arrival.source} has failed: {arrival.failed}; start it again"
        )
    state = (
        f"checkpoint {place.path} has not arrived on this node: {model.progress(arrival)} after "
        f"{wait_s:g} s, from {arrival.source}; "
    )
    if arrivals.is_alive(place.namespace, place.name):
        return NotArrivedError(f"{state}kubelet asks again")
    return ArrivalFailedError(
        f"{state}its transfer has died; start it again or wait until grit agent takes it up"
    )
