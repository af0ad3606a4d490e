"""Freezing a pod at a moment at which all of it can be dumped.

A parent that waits in vfork cannot be stopped, the data of a connection that was not accepted
cannot be read, and unread events are in no image. Such states last for milliseconds in most
programs, so a pod that is found in one runs on for a moment, and is frozen again.
"""

from __future__ import annotations

import time

from grit_runtime.errors import NotDumpableError
from grit_runtime.host import procfs, runc
from grit_runtime.model.checkpoint_steps import Freeze
from grit_runtime.model.losses import Loss
from grit_runtime.startup.named import NamedTuple
from grit_runtime.tasks import sockets, watches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence, Set

    from grit_runtime.checkpoint.order import Context
    from grit_runtime.host.runc import Runc
    from grit_runtime.pod.running_container import RunningContainer

# For how long the freeze is retried: while a dump is impossible, and while it would lose events.
_PATIENCE_S = 10.0
_EVENTS_PATIENCE_S = 1.0
# How long the pod runs in between; doubled each time that a freeze had to be undone.
_FIRST_RUN_S = 0.001
_LONGEST_RUN_S = 0.1


class Frozen(NamedTuple):
    """Ids of the containers that were frozen; *losses* is what their dump will lose."""

    ids: list[str]
    losses: tuple[Loss, ...] = ()


def freeze(context: Context, thawed: Sequence[str]) -> Frozen:
    """Freeze the running containers of the pod, and *thawed*, which somebody else had paused.

    The pod is inspected while it runs, and frozen when nothing prevents the dump. Blocks for some
    seconds if something keeps preventing it; then FailedPreconditionError names the cause, and the
    pod runs.
    """
    tool, containers = context.tool, context.containers
    running = [c for c in containers if not c.paused or c.id in thawed]
    ids = [container.id for container in running]
    for container_id in ids:
        context.journal.record(Freeze(container_id))
    began = time.monotonic()
    run_s = _FIRST_RUN_S

    def may_go_on(patience_s: float) -> bool:
        return bool(ids) and time.monotonic() < began + patience_s

    with context.timeline.phase("freeze"):
        while True:
            reasons, losses = _against(containers)
            if not reasons and not (losses and may_go_on(_EVENTS_PATIENCE_S)):
                reasons = freeze_once(tool, running)
                if not reasons:
                    reasons, losses = _against(containers)
                if not reasons and not (losses and may_go_on(_EVENTS_PATIENCE_S)):
                    return Frozen(ids, losses)
                thaw(tool, ids)
                run_s = min(2 * run_s, _LONGEST_RUN_S)
            if reasons and not may_go_on(_PATIENCE_S):
                raise NotDumpableError("; ".join(reasons))
            time.sleep(run_s)


def thaw(tool: Runc, ids: Sequence[str]) -> None:
    """Let containers run that `freeze` has frozen."""
    for container_id in ids:
        runc.resume(tool, container_id)


def freeze_once(tool: Runc, containers: Sequence[RunningContainer]) -> list[str]:
    """Freeze *containers*; the reasons why one of them does not freeze, if any."""
    for container in containers:
        if not runc.try_pause(tool, container.id):
            stuck = sorted(pid for pid in container.pids() if procfs.is_in_kernel(pid))
            return [
                f"process {pid} in container {container.name} cannot be frozen: it waits in the "
                f"kernel for what does not come; look at /proc/{pid}/stack"
                for pid in stuck
            ] or [f"container {container.name} cannot be frozen: it comes to no rest; try again"]
    return []


def _against(containers: Sequence[RunningContainer]) -> tuple[list[str], tuple[Loss, ...]]:
    """Why the containers cannot be dumped now, or else what a dump now would lose.

    In most programs both last only for a moment.
    """
    reasons = [
        f"process {pid} in container {container.name} {reason}"
        for container in containers
        for pid, reason in _moments(container.pids())
    ]
    return reasons, () if reasons else _unread(containers)


def _moments(pids: Set[int]) -> Iterator[tuple[int, str]]:
    links = {pid: procfs.open_links(pid) for pid in sorted(pids)}
    for pid, own in links.items():
        if reason := procfs.cannot_be_stopped(pid):
            yield pid, f"cannot be stopped for the dump: it waits for {reason}; try again"
        if sockets.corked(pid, own):
            yield pid, "holds datagrams back (UDP_CORK), which CRIU cannot dump; have it not"
    held = sockets.owners(links)
    for pid, name in sockets.unaccepted(held, sockets.unix_sockets(held)):
        was = f"a connection of the unix socket {name} that was written to or closed"
        yield pid, f"has not accepted {was}, which CRIU cannot dump; have it accept what comes"
    for pid in sorted(sockets.unread_netlink(held)):
        yield pid, "has not read a netlink socket, which CRIU cannot dump so; have it read"


def _unread(containers: Sequence[RunningContainer]) -> tuple[Loss, ...]:
    return tuple(_watch_events(containers)) + tuple(_received(containers))


def _watch_events(containers: Sequence[RunningContainer]) -> Iterator[Loss]:
    for container in containers:
        for pid in sorted(container.pids()):
            if watches.unread_bytes(pid):
                text = "has not read all that inotify or fanotify has told it; have it read those"
                yield Loss("WatchEventsLost", container.name, pid, text)


def _received(containers: Sequence[RunningContainer]) -> Iterator[Loss]:
    for container in containers:
        for pid, kind in sorted(sockets.unread(container.pids()).items()):
            text = f"has not read all that {kind} has received; have it read, or close it"
            yield Loss("ReceivedLost", container.name, pid, text)
