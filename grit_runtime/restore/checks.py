"""The one list of conditions under which a dump can come back in a pod.

A checkpoint checks each dump against its source pod before it is sealed, so that nothing is sealed
that every restore would refuse. A restore checks it against the new pod, on the new node, before
CRIU runs. `grit inspect --against` shows all that a restore would refuse. Checks are listed by what
they look at, which decides who can run them, and when.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager

from grit_runtime.dump import fit_to_pod, fit_to_runc, images, open_files, shared_pages, symlinks
from grit_runtime.errors import (
    ConnectionsError,
    FailedPreconditionError,
    GritError,
    NotDumpableError,
    VolumeError,
)
from grit_runtime.files import checkpoint_dir, confine, room
from grit_runtime.host import namespaces
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import (
    compatibility,
    connections,
    mount_plan,
    pod_check,
    privilege,
)
from grit_runtime.model import open_files as files_by_name
from grit_runtime.pod import bundle, network
from grit_runtime.startup.named import NamedTuple
from grit_runtime.wire.criu_image import text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from grit_runtime.model.dump import Dump
    from grit_runtime.model.live_pod import LivePod
    from grit_runtime.model.manifest import Container, Node
    from grit_runtime.model.mount_plan import MountPlan

    Images = Mapping[str, bytes | None]

# The remedy that a restore's refusal ends with; `of_source` replaces it.
_INTO_ANOTHER_POD = re.compile(r"restore into a pod with the [\w ]+ of the checkpointed one")


class Here(NamedTuple):
    """The node that the pod is on; *taken_on* is None if the dump's own node is unknown.

    *taking_over* are pids of processes that will be gone by the restore; *place_gpus* finds room
    for GPU memory, or raises.
    """

    node: Node
    taken_on: Node | None
    tcp: str
    taking_over: frozenset[int]
    place_gpus: Callable[[], object]


class Case(NamedTuple):
    """A container's dump, adapted to the pod that it is checked against.

    *fitted* are the images that differ from those in the directory *images_fd*; *running* are the
    containers that have a dump in the checkpoint.
    """

    path: str
    checkpoint_fd: int
    container: Container
    running: tuple[str, ...]
    rootfs_dir: str
    images_fd: int
    dump: Dump
    live: LivePod
    plan: MountPlan
    fitted: Mapping[str, bytes]


def case(
    path: str,
    checkpoint_fd: int,
    container: Container,
    running: Sequence[str],
    bundle_dir: str,
    spec: dict[str, Any],
) -> Case:
    """The dump of a container in the checkpoint at *path*, adapted to the pod of a bundle.

    ImageError for images that cannot be read. The caller closes `images_fd`.
    """
    images_fd = confine.descend(checkpoint_fd, (container.name, "checkpoint"))
    live = bundle.live(bundle_dir, spec)
    dump, fitted = fit_to_pod.adapt_open_files(
        images_fd, images.read(images_fd), live, container.facts
    )
    source_spec = checkpoint_dir.spec(checkpoint_fd, container.name)
    dump = dump._replace(mounts=mount_plan.narrowed(dump.mounts, live.mounts, source_spec))
    return Case(
        path=path,
        checkpoint_fd=checkpoint_fd,
        container=container,
        running=tuple(running),
        rootfs_dir=bundle.rootfs(bundle_dir, spec),
        images_fd=images_fd,
        dump=dump,
        live=live,
        plan=mount_plan.plan_mounts(mount_plan.dumped_mounts(dump.mounts), live.mounts),
        fitted=fitted,
    )


def check(held: Case) -> dict[str, bytes | None]:
    """Run all checks of `OF_SPEC`; the images to be replaced for the dump to come back.

    An image that is None is to be left out. GritError is the first refusal.
    """
    changed: dict[str, bytes | None] = {**held.fitted}
    for ask in OF_SPEC:
        changed |= ask(held) or {}
    return changed


def check_files(held: Case) -> None:
    """Run all checks of `OF_FILES`. GritError is the first refusal."""
    for ask in OF_FILES:
        ask(held)


def check_here(held: Case, here: Here) -> None:
    """Run all checks of `OF_NODE`. GritError is the first refusal."""
    for ask in OF_NODE:
        ask(held, here)


def refusals(held: Case, here: Here) -> Iterator[str]:
    """All refusals of a restore that can be known before anything is put back."""
    for ask in OF_SPEC:
        yield from _refused(ask, held)
    for ask_here in OF_NODE:
        yield from _refused(ask_here, held, here)


def _refused(ask: Callable[..., object], *subjects: object) -> list[str]:
    try:
        ask(*subjects)
    except GritError as error:
        return [str(error)]
    return []


@contextmanager
def of_source(container: str) -> Iterator[None]:
    """Word a refusal in the block as one of *container*, the source of the dump."""
    try:
        yield
    except GritError as error:
        remedy = "end it, or what it has beyond its pod's own spec, and take the checkpoint again"
        reason = _INTO_ANOTHER_POD.sub(remedy, str(error))
        raise NotDumpableError(f"container {container} cannot come back: {reason}") from error


def pod_networks(live: LivePod) -> list[str]:
    """The path of the pod's network namespace, in a list; empty if that is the node's."""
    return [
        namespace["path"]
        for namespace in live.spec["linux"]["namespaces"]
        if namespace["type"] == "network" and "network" not in live.node_namespaces
    ]


def missing_addresses(held: Case) -> list[str]:
    """The addresses that dumped sockets are bound to and that nothing can be bound to here."""
    dumped = connections.sockets(held.dump.files)
    bound = sorted({socket.local.address for socket in dumped if socket.is_bound_to_address})
    return network.missing_addresses(pod_networks(held.live), bound)


def _check_volumes(held: Case) -> None:
    reason = mount_plan.missing_reason(held.plan)
    if reason:
        raise VolumeError(reason)


def _check_user_namespace(held: Case) -> None:
    reason = pod_check.user_namespace_refusal(held.live.spec)
    if reason:
        raise NotDumpableError(reason)


def _check_privilege(held: Case) -> None:
    privilege.check(held.dump, held.live)
    privilege.check_facts(held.container.facts, held.live.spec)


def _check_memory(held: Case) -> None:
    """Refuse memory that is incomplete or above the limit.

    The size of shared memory is read only if it decides.
    """
    images.check_pages(held.images_fd, held.dump.names)
    limit_bytes = pod_check.memory_limit_bytes(held.live.spec)
    size_bytes = images.pages_bytes(held.images_fd, held.dump.names)
    if 0 < limit_bytes < size_bytes:
        shared_bytes = shared_pages.size_bytes(held.images_fd, held.dump)
        pod_check.check_memory(limit_bytes, size_bytes - shared_bytes)


def _check_files_of_tasks(held: Case) -> None:
    file = files_by_name.of_absent_task(held.dump)
    if file is not None:
        user = images.user(held.images_fd, held.dump, file.id)
        raise NotDumpableError(
            f"{user}: {text(file.name)!r} is of a thread or a process that is not there when a "
            "restore opens files; close it for the checkpoint"
        )


def _check_sockets(held: Case) -> None:
    if not pod_networks(held.live) and images.has_unsent_data(held.images_fd, held.dump.names):
        raise ConnectionsError(
            "a TCP connection has bytes that were never sent, which CRIU would lose on the node's "
            "own network (hostNetwork: true); take the checkpoint when its receiver has caught up"
        )


def _leave_out_sysv(held: Case) -> Images:
    """Leave out the images of the pod's SysV IPC objects, if another container restores them."""
    names = held.dump.names
    of_sysv = [name for kind in pod_check.SYSV_IMAGES for name in images.named(names, kind)]
    if not of_sysv:
        return {}
    attached = []
    for name in held.running:
        with closing_fd(confine.descend(held.checkpoint_fd, (name, "checkpoint"))) as images_fd:
            if images.attaches_sysv(images_fd):
                attached.append(name)
    owner = pod_check.sysv_owner(held.running, attached)
    return {} if owner == held.container.name else dict.fromkeys(of_sysv)


def _adapt(held: Case) -> Images:
    return fit_to_runc.adapt_for_runc(held.images_fd, held.dump, held.live.spec, held.plan)


def _check_links(held: Case) -> None:
    def user(file_id: int) -> str:
        return images.user(held.images_fd, held.dump, file_id)

    symlinks.check(held.rootfs_dir, held.dump, held.live, user)


def _check_open_files(held: Case) -> None:
    open_files.check(held.rootfs_dir, held.dump, held.live, image=held.container.image)


def _check_node(held: Case, here: Here) -> None:
    taken_on = here.taken_on
    reasons = compatibility.refusals(taken_on, here.node) if taken_on else []
    if reasons:
        raise FailedPreconditionError(f"checkpoint {held.path} {'; it '.join(reasons)}")


def _check_numbers(held: Case, here: Here) -> None:
    """Refuse if pids of the dump are taken in a pid namespace that the container shares."""
    pids = [ns for ns in held.live.spec["linux"]["namespaces"] if ns["type"] == "pid"]
    path = pids[0].get("path") if pids else "/proc/self/ns/pid"  # none: the node's
    if path:
        taken = namespaces.tasks(path)
        free = taken.keys() & here.taking_over
        pod_check.check_numbers(held.dump.cores, {n: taken[n] for n in taken.keys() - free})


def _check_addresses(held: Case, here: Here) -> None:
    missing = missing_addresses(held)
    reason = None
    if missing and not pod_networks(held.live):
        reason = f"its sockets are bound to {missing[0]}, which this node has not"
    elif missing and here.tcp != "close":
        reason = connections.unreachable(connections.sockets(held.dump.files), missing)
    if reason:
        raise FailedPreconditionError(f"checkpoint {held.path}: {reason}")


def _check_room(held: Case, _here: Here) -> None:
    """Refuse if the disk has no room for the rw layer as it is stored.

    A layer that another program compressed is counted when it is read.
    """
    layer_fd = checkpoint_dir.open_optional(
        held.checkpoint_fd, f"{held.container.name}/rootfs-diff.tar"
    )
    if layer_fd is None:
        return
    with closing_fd(layer_fd), closing_fd(confine.open_dir(held.rootfs_dir)) as root_fd:
        room.check_room(os.fstat(layer_fd).st_size, root_fd)


def _place_gpus(held: Case, here: Here) -> None:
    if held.container.cuda:
        here.place_gpus()


# Checks that the pod's spec decides. A checkpoint runs them on its source; a restore and a dry run
# on the new pod.
OF_SPEC: tuple[Callable[[Case], Images | None], ...] = (
    _check_user_namespace,
    _check_volumes,
    _check_privilege,
    _check_memory,
    _check_files_of_tasks,
    _check_sockets,
    _leave_out_sysv,
    _adapt,
)

# Checks that the root filesystem and the volumes decide: of the source while it is frozen, of the
# new pod when the rw layer and the captured volumes are in place. A dry run puts nothing in place,
# so it cannot run them.
OF_FILES: tuple[Callable[[Case], None], ...] = (_check_links, _check_open_files)

# Checks that the new pod's node and sandbox decide: for a restore and a dry run.
OF_NODE: tuple[Callable[[Case, Here], None], ...] = (
    _check_node,
    _check_numbers,
    _check_addresses,
    _check_room,
    _place_gpus,
)
