"""What is refused before a pod is touched, because CRIU could not dump it or bring it back whole.

Read from /proc and config.json while the pod runs. What comes up between this and the freeze, CRIU
refuses itself, in its own words, and the pod runs on.
"""

from __future__ import annotations

from grit_runtime.errors import FailedPreconditionError
from grit_runtime.host import cgroup, overlay, process, sockets, watches
from grit_runtime.model import dump_check
from grit_runtime.model.dump_check import ContainerFacts, ProcessFacts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from grit_runtime import gpu


def refuse_undumpable(containers: Sequence[gpu.Container]) -> dict[str, tuple[str, ...]]:
    """What CRIU must be told to dump each container: lines of its configuration file, by name.

    FailedPreconditionError, with all reasons, for a pod that cannot be dumped as it is.
    """
    facts = []
    processes = []
    lines = {}
    for container in containers:
        pids = container.pids()
        mountpoints = overlay.mountpoints(container.init_pid)
        mounts = container.spec.get("mounts") or ()
        facts.append(ContainerFacts(container.name, mounts, mountpoints))
        peers = sockets.unix_peers(pids)
        watched = watches.on_root(pids)
        paths = watches.names(f"/proc/{container.init_pid}/root", set().union(*watched.values()))
        processes += [
            ProcessFacts(
                pid,
                container.name,
                has_io_uring="anon_inode:[io_uring]" in process.open_links(pid).values(),
                tracer_pid=process.tracer(pid),
                unix_peers=tuple(name for owner, name in peers if owner == pid),
                nameless_watches=tuple(sorted(watched.get(pid, set()) - paths.keys())),
                cannot_stir=process.is_stopped(pid) and not cgroup.is_unified(),
            )
            for pid in sorted(pids)
        ]
        lines[container.name] = dump_check.watch_options(paths.values())
    reasons = dump_check.refusals(facts, processes)
    if reasons:
        raise FailedPreconditionError("; ".join(reasons))
    return lines
