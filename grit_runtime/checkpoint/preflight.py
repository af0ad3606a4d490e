"""What is asked of a pod before it is touched, and refused or warned of.

That is what CRIU could not dump or bring back whole, or nobody has decided on.

Everything is read from /proc and config.json while the pod runs. What changes between this and the
freeze is refused by CRIU, in its own words, and the pod runs on.
"""

from __future__ import annotations

from grit_runtime import log
from grit_runtime.errors import (
    ConnectionsError,
    NotDumpableError,
    StrictError,
)
from grit_runtime.files import confine, room
from grit_runtime.host import cgroup, criu, overlay, procfs, runc
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import connections, losses, pod_check, process_preflight
from grit_runtime.model.annotations import CAPTURE, capture, strict, tcp
from grit_runtime.model.losses import Loss
from grit_runtime.model.process_preflight import ContainerFacts, ProcessFacts
from grit_runtime.nvidia import gpu_driver
from grit_runtime.pod import volumes
from grit_runtime.startup.named import NamedTuple
from grit_runtime.tasks import (
    deleted_files,
    descriptors,
    ptrace_agent,
    readback,
    socket_files,
    sockets,
    threads,
    watches,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence, Set

    from grit_runtime.checkpoint.order import Context
    from grit_runtime.host.process import Child
    from grit_runtime.pod.running_container import RunningContainer
    from grit_runtime.tasks.readback import Asked


class Preflight(NamedTuple):
    """A pod that can be dumped.

    *lines* are, by container, the lines of CRIU's configuration file that its dump needs; *losses*
    are what will come back different.
    """

    lines: dict[str, tuple[str, ...]]
    losses: tuple[Loss, ...]


def refuse_undumpable(containers: Sequence[RunningContainer]) -> Preflight:
    """FailedPreconditionError, with all reasons, for a pod that cannot be dumped as it is."""
    facts = []
    processes = []
    lines = {}
    losses: list[Loss] = []
    for container in containers:
        pids = container.pids()
        mountpoints = overlay.mountpoints(container.init_pid)
        mounts = container.spec.get("mounts") or ()
        facts.append(ContainerFacts(container.name, mounts, mountpoints))
        watched = watches.on_root(pids)
        paths = watches.names(f"/proc/{container.init_pid}/root", set().union(*watched.values()))
        processes += _process_facts(container, pids, watched, paths.keys())
        lines[container.name] = process_preflight.watch_options(paths.values())
        losses += [
            Loss("FifoHangup", container.name, pid, process_preflight.hang_up(name))
            for pid, name in descriptors.hang_up_after_restore(pids).items()
        ]
        losses += [
            Loss("InodeNumbers", container.name, pid, f"has the SQLite database {name} open")
            for pid, name in descriptors.open_databases(pids, container.init_pid).items()
        ]
        losses += [
            Loss(
                "EventfdSemaphore",
                container.name,
                pid,
                "has an eventfd that will no longer be a semaphore (EFD_SEMAPHORE)",
            )
            for pid in descriptors.semaphores(pids)
        ]
    reasons = [
        f"container {container.name}: {reason}"
        for container in containers
        if (reason := pod_check.user_namespace_refusal(container.spec))
    ]
    reasons += process_preflight.refusals(facts, processes)
    if len(containers) > 1:
        used = {container.name: deleted_files.used(container.pids()) for container in containers}
        reasons += process_preflight.torn_apart(used)
    if reasons:
        raise NotDumpableError("; ".join(reasons))
    return Preflight(lines, tuple(losses))


def _process_facts(
    container: RunningContainer, pids: Set[int], watched: Mapping[int, Set[int]], named: Set[int]
) -> list[ProcessFacts]:
    """Facts about the processes; *named* are the watched inodes that a path leads to."""
    links = {pid: procfs.open_links(pid) for pid in sorted(pids)}
    peers = sockets.unix_peers(links)
    renamed = socket_files.renamed(container.init_pid, sorted(pids))
    mounted = descriptors.mounts(container.init_pid)
    own = procfs.namespaces(container.init_pid)
    gpu_users = set(gpu_driver.cuda_pids(pids))
    is_unified = cgroup.is_unified()
    return [
        ProcessFacts(
            pid,
            container.name,
            has_io_uring="anon_inode:[io_uring]" in links[pid].values(),
            tracer_pid=ptrace_agent.debugger(pid),
            unix_peers=tuple(name for owner, name in peers if owner == pid),
            nameless_watches=tuple(sorted(watched.get(pid, set()) - named)),
            stopped_on_cgroup_v1=procfs.is_stopped(pid) and not is_unified,
            descriptors=tuple(descriptors.described(pid, links[pid], mounted)),
            has_secret_memory="/secretmem" in procfs.text(pid, "maps"),
            namespaces=tuple(
                kind for kind, inode in procfs.namespaces(pid).items() if inode != own.get(kind)
            ),
            uses_gpus=pid in gpu_users,
            is_without_first_thread=procfs.is_without_first_thread(pid),
            is_32_bit=procfs.is_32_bit(pid),
            displaced_sockets=tuple(
                (socket.file.bound, socket.file.names[0])
                for socket in renamed
                if socket.pid == pid and socket.is_taken
            ),
            apart=tuple(threads.apart(pid)),
            has_own_timer=threads.has_own_timer(pid),
            shared=tuple(threads.shared_with_parent(pid)),
        )
        for pid in sorted(pids)
    ]


class Looked(NamedTuple):
    """What was asked of a pod before it is touched, and of the programs that will dump it."""

    able: Preflight
    asked: Asked
    tcp: dict[str, connections.DumpOptions]  # by container
    flags: Child  # of runc, which tells those of its checkpoint
    versions: tuple[Child, Child]  # of CRIU and runc, which tell theirs


def look(context: Context) -> Looked:
    """Look at the pod before it is touched, refuse what cannot come back, warn of the rest."""
    tool = context.tool
    versions = (criu.start_version(tool.token), runc.start_version(tool))
    able = refuse_undumpable(context.containers)
    asked = readback.ask(context.containers, tool.token)
    tell_losses(context, able.losses + asked.losses)
    flags = runc.start_flags(tool, "checkpoint")
    return Looked(able, asked, _tcp_options(context.containers), flags, versions)


def tell_losses(context: Context, found: tuple[losses.Loss, ...]) -> None:
    """Warn of what will come back different, or refuse it if the pod or the caller is strict."""
    is_strict = context.order.strict or any(
        strict(container.spec.get("annotations", {})) for container in context.containers
    )
    if found and is_strict:
        raise StrictError(losses.refusal(found))
    for loss in found:
        log.warning("not all will come back as it is", loss=losses.line(loss))


def _tcp_options(containers: Sequence[RunningContainer]) -> dict[str, connections.DumpOptions]:
    """How each container's connections are dumped; refuses those that nobody has decided on."""
    asked = {c.name: tcp(c.spec.get("annotations", {})) for c in containers}
    waiting = [
        (c.name, *listener)
        for c in containers
        if asked[c.name] != "close"
        for listener in sockets.backlogs(c.pids())
    ]
    reason = connections.refusal_of_backlogs(waiting)
    if reason:
        raise ConnectionsError(reason)
    found = {c.name: sockets.connections(c.pids()) for c in containers}
    outside = set(connections.outside([end for ends in found.values() for end in ends]))
    undecided = [
        (name, end)
        for name, ends in found.items()
        if asked[name] == "refuse"
        for end in ends
        if end in outside
    ]
    reason = connections.refusal(undecided)
    if reason:
        raise ConnectionsError(reason)
    return {
        name: connections.dump_options(asked[name], ends, inside=not outside & set(ends))
        for name, ends in found.items()
    }


def choose_volumes(context: Context) -> dict[str, str]:
    """The volumes that go along; refuses to leave one behind that somebody needs."""
    asked = context.order.capture.union(
        *(capture(c.spec.get("annotations", {}).get(CAPTURE, "")) for c in context.containers)
    )
    written_before = [
        mount.source
        for container in context.order.pod.containers
        if container.state == "exited"
        for mount in container.mounts
        if not mount.readonly
    ]
    return volumes.choose(context.containers, asked, written_before)


def check_room(context: Context, chosen: dict[str, str], gpu_bytes: int) -> None:
    """Refuse what surely fills the disk: memory, rw layers and volumes are more than it has."""
    copied = [overlay.upper_dir(f"{c.bundle_dir}/rootfs") for c in context.containers]
    pids = [pid for c in context.containers for pid in c.pids()]
    needed_bytes = gpu_bytes + sum(procfs.anonymous_bytes(pid) for pid in pids)
    for path in (*copied, *chosen.values()):
        with closing_fd(confine.open_dir(path)) as directory_fd:
            needed_bytes += room.used_bytes(directory_fd)
    with closing_fd(confine.open_dir(context.staging_dir)) as staging_fd:
        room.check_room(needed_bytes, staging_fd)
