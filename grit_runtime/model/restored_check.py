"""Comparing what CRIU restored with the dump and with the pod's spec. Pure.

The checks before a restore compare the dump with the spec; this compares the restored tree with
both, as the kernel shows it while no task runs: CRIU may have left out or changed something.
"""

from __future__ import annotations

from grit_runtime.model import mount_flags, namespaces, privilege, seccomp
from grit_runtime.model.dump import DEAD, DumpedThread
from grit_runtime.model.mount_plan import dumped_mounts
from grit_runtime.startup.named import NamedTuple
from grit_runtime.wire.criu_image import text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from grit_runtime.model.dump import Dump
    from grit_runtime.model.live_pod import LivePod
    from grit_runtime.model.mount_plan import LiveMount
    from grit_runtime.proto import criu_pb2 as criu

_SCHED_RESET_ON_FORK = 0x40000000
_REALTIME = frozenset({1, 2})  # SCHED_FIFO and SCHED_RR
_FILTER = 2  # SECCOMP_MODE_FILTER
_PIPE = 2  # fd_types of fdinfo.proto
_WITH_FLAGS = ("reg", "pipe", "isk", "usk", "efd", "epfd", "sgfd", "ify")
_LISTEN = 10  # include/net/tcp_states.h
_O_PATH = 0o10000000
# The flags of a descriptor that a program chooses: how it reads and writes.
_CHOSEN_FLAGS = 0o3 | 0o2000 | 0o4000 | 0o10000 | 0o40000 | 0o4010000 | _O_PATH | 0o1000000
_O_CLOEXEC = 0o2000000
_STREAMS = 3
_RLIM_INFINITY = 2**64 - 1
_CAPABILITY_SETS = (
    ("cap_inh", "CapInh"),
    ("cap_prm", "CapPrm"),
    ("cap_eff", "CapEff"),
    ("cap_bnd", "CapBnd"),
    ("cap_amb", "CapAmb"),
)
_IDS = (("Uid", ("uid", "euid", "suid", "fsuid")), ("Gid", ("gid", "egid", "sgid", "fsgid")))


class Descriptor(NamedTuple):
    """A descriptor as /proc/PID/fdinfo shows it; *flags* with O_CLOEXEC."""

    flags: int
    position: int
    is_listening: bool = False


class Thread(NamedTuple):
    """A thread: its lines of /proc/TID/status, and how it is scheduled."""

    status: Mapping[str, str]
    policy: int
    priority: int
    nice: int


class Process(NamedTuple):
    """A process, with the container's pids; *limits* in the order of their numbers.

    *namespaces* are inodes by their names in /proc/PID/ns, *cgroups* paths by the hierarchy.
    *is_dumpable* is None if /proc does not show it, as for root.
    """

    threads: Mapping[int, Thread]
    oom_score_adj: int
    limits: Sequence[tuple[int, int]]
    namespaces: Mapping[str, int]
    cgroups: Mapping[str, str]
    descriptors: Mapping[int, Descriptor]
    is_dumpable: bool | None
    label: str


class Mount(NamedTuple):
    """A line of mountinfo: its path, its options, and its propagation."""

    path: str
    options: frozenset[str]
    propagation: frozenset[str]


class Tree(NamedTuple):
    """What was restored; *processes* by their numbers in the container, *mounts* of the first.

    *node* are the node's namespaces, *given* those that config.json names by a path, by its words.
    *cgroup* is the container's own, in the *hierarchies* that have it.
    """

    processes: Mapping[int, Process]
    mounts: Sequence[Mount]
    node: Mapping[str, int]
    given: Mapping[str, int]
    cgroup: str
    hierarchies: frozenset[str]


class Images(NamedTuple):
    """The part of the dump that only this needs: descriptors and address space of each process.

    *windows* are the peers' receive windows in bytes, by the dumped inode, of those TCP sockets
    whose peers have sent a FIN.
    """

    descriptors: Mapping[int, Sequence[criu.fdinfo_entry]]
    spaces: Mapping[int, criu.mm_entry]
    windows: Mapping[int, int]


def differences(dump: Dump, more: Images, live: LivePod, tree: Tree) -> Iterator[str]:
    """A line for each difference: whose it is, the restored value, the expected value."""
    alive = [task for task in dump.tasks if dump.cores[task.pid].tc.task_state != DEAD]
    expected = {task.pid for task in alive}
    for pid in sorted(expected ^ tree.processes.keys()):
        yield f"process {pid}: {'is missing' if pid in expected else 'is not in the dump'}"
    files = {file.id: file for file in dump.files}
    for task in alive:
        if task.pid in tree.processes:
            process = tree.processes[task.pid]
            where = f"process {task.pid} ({text(dump.cores[task.pid].tc.comm)})"
            yield from _of_threads(dump, task, process)
            yield from _of_process(where, dump.cores[task.pid], process)
            yield from _of_space(where, more.spaces.get(task.pid), process)
            if task.pid in more.descriptors:
                yield from _of_descriptors(where, more.descriptors[task.pid], files, process)
    yield from _of_places(dump, live, tree)
    yield from _of_mounts(dump, tree)


def wrong_mount_flags(dump: Dump, mounts: Sequence[Mount]) -> dict[str, int]:
    """The flags of mount(2) that mounts should have and do not, by their places."""
    seen = {mount.path: mount for mount in mounts}  # the last is on top of the others
    return {
        path: entry.flags & mount_flags.ALL
        for path, entry in _by_place(dump).items()
        if path in seen and flags(seen[path]) != entry.flags & mount_flags.ALL
    }


def wider(live: Sequence[LiveMount], mounts: Sequence[Mount]) -> list[str]:
    """The volumes whose mounts lack restrictions of the container's spec, and these."""
    seen = {mount.path: mount for mount in mounts}
    found = []
    for mount in live:
        if mount.fs_type == "bind" and mount.destination in seen:
            has = flags(seen[mount.destination])
            lacks = [
                option for option in mount.options if mount_flags.OPTIONS.get(option, 0) & ~has
            ]
            if lacks:
                found.append(f"{mount.destination} not {', not '.join(lacks)}")
    return found


def _of_threads(dump: Dump, task: criu.pstree_entry, process: Process) -> Iterator[str]:
    tids = {task.pid, *task.threads}
    for tid in sorted(tids ^ process.threads.keys()):
        yield f"thread {tid}: {'is missing' if tid in tids else 'is not in the dump'}"
    for tid in sorted(tids & process.threads.keys()):
        thread, core = process.threads[tid], dump.cores[tid].thread_core
        where = f"thread {tid} ({thread.status.get('Name', '?')})"
        dumped = DumpedThread(where, dump.cores[tid], dump.cores[task.pid])
        for what, has, should in (
            *_credentials(core.creds, thread.status),
            *_seccomp(dumped, dump.seccomp, thread.status),
            *_scheduling(core, thread),
        ):
            if has != should:
                yield f"{where}: {what} is {has}, expected {should}"


def _credentials(
    creds: criu.creds_entry, status: Mapping[str, str]
) -> Iterator[tuple[str, object, object]]:
    for line, fields in _IDS:
        yield line, status[line].split(), [str(getattr(creds, field)) for field in fields]
    yield "Groups", sorted(map(int, status["Groups"].split())), sorted(creds.groups)
    for field, line in _CAPABILITY_SETS:
        words = getattr(creds, field)
        mask = sum(word << (32 * index) for index, word in enumerate(words))
        yield line, f"{int(status[line], 16):#x}", f"{mask:#x}"
    yield "NoNewPrivs", int(status["NoNewPrivs"]), int(creds.no_new_privs)


def _seccomp(
    thread: DumpedThread, dumped: criu.seccomp_entry | None, status: Mapping[str, str]
) -> Iterator[tuple[str, object, object]]:
    filters = seccomp.chain(thread, dumped.seccomp_filters if dumped else ())
    mode = _FILTER if filters else thread.core.thread_core.seccomp_mode
    yield "Seccomp", int(status.get("Seccomp", 0)), mode
    if "Seccomp_filters" in status:
        yield "Seccomp_filters", int(status["Seccomp_filters"]), len(filters)


def _scheduling(
    core: criu.thread_core_entry, thread: Thread
) -> Iterator[tuple[str, object, object]]:
    if not core.HasField("sched_policy"):
        return
    yield "scheduling policy", thread.policy, core.sched_policy
    if core.sched_policy & ~_SCHED_RESET_ON_FORK in _REALTIME:
        yield "priority", thread.priority, core.sched_prio
    else:
        yield "nice value", thread.nice, core.sched_nice


def _of_process(where: str, core: criu.core_entry, process: Process) -> Iterator[str]:
    if core.tc.HasField("oom_score_adj") and process.oom_score_adj != core.tc.oom_score_adj:
        yield f"{where}: oom_score_adj is {process.oom_score_adj}, expected {core.tc.oom_score_adj}"
    limits = [(entry.cur, entry.max) for entry in core.tc.rlimits.rlimits]
    for number, (has, should) in enumerate(zip(process.limits, limits, strict=False)):
        if has != should:
            yield f"{where}: resource limit {number} is {_limit(has)}, expected {_limit(should)}"


def _limit(pair: tuple[int, int]) -> str:
    return "/".join("unlimited" if value == _RLIM_INFINITY else str(value) for value in pair)


def _of_space(where: str, space: criu.mm_entry | None, process: Process) -> Iterator[str]:
    status = next(iter(process.threads.values())).status if process.threads else {}
    if space is not None and "THP_enabled" in status:
        enabled = int(status["THP_enabled"])
        if enabled == int(space.thp_disabled):
            yield f"{where}: THP_enabled is {enabled}, expected {1 - enabled}"
    if space is not None and process.is_dumpable not in (None, space.dumpable == 1):
        yield f"{where}: is {'not ' * (space.dumpable != 1)}to be dumpable"


def _of_descriptors(
    where: str,
    dumped: Sequence[criu.fdinfo_entry],
    files: Mapping[int, criu.file_entry],
    process: Process,
) -> Iterator[str]:
    wanted = {entry.fd: entry for entry in dumped}
    for fd in sorted(wanted.keys() ^ process.descriptors.keys()):
        yield f"{where}: descriptor {fd} {'is missing' if fd in wanted else 'is not in the dump'}"
    for fd in sorted(wanted.keys() & process.descriptors.keys()):
        found, entry = process.descriptors[fd], wanted[fd]
        if bool(found.flags & _O_CLOEXEC) != bool(entry.flags):
            yield f"{where}: descriptor {fd} has {'no ' * bool(entry.flags)}close-on-exec"
        file = files.get(entry.id)
        if file is None or (fd < _STREAMS and file.type == _PIPE):
            continue  # the standard streams are the new pod's
        yield from _of_file(f"{where}: descriptor {fd}", file, found)


def _of_file(where: str, file: criu.file_entry, found: Descriptor) -> Iterator[str]:
    for kind in _WITH_FLAGS:
        if file.HasField(kind):
            flags = getattr(file, kind).flags
            if (found.flags ^ flags) & _CHOSEN_FLAGS:
                yield f"{where} has flags {found.flags:#o}, expected {flags:#o}"
    if file.HasField("reg") and not file.reg.flags & _O_PATH and found.position != file.reg.pos:
        yield f"{where} is at position {found.position}, expected {file.reg.pos}"
    if file.HasField("isk") and (file.isk.state == _LISTEN) != found.is_listening:
        yield f"{where}: its socket listens{'' if found.is_listening else ' no more'}"


def _of_places(dump: Dump, live: LivePod, tree: Tree) -> Iterator[str]:
    """Namespaces, cgroups and security labels: those of the pod, for every process."""
    init_pid = next(task.pid for task in dump.tasks if task.ppid == 0)
    if init_pid in tree.processes:
        for kind, (name, field) in namespaces.KINDS.items():
            wrong = _of_namespace(kind, tree.processes[init_pid].namespaces[name], live, tree)
            if wrong:
                yield f"process {init_pid}: its {kind} namespace is {wrong}"
            for pid in sorted(tree.processes.keys() & dump.ids.keys()):
                inode = tree.processes[pid].namespaces[name]
                is_apart = inode != tree.processes[init_pid].namespaces[name]
                own = getattr(dump.ids[pid], field), getattr(dump.ids[init_pid], field)
                if is_apart != (own[0] != own[1]):
                    yield f"process {pid}: is {'not ' * is_apart}in the first's {kind} namespace"
    label = privilege.lsm_profile(live.spec)
    for pid, process in tree.processes.items():
        for hierarchy, path in process.cgroups.items():
            if hierarchy in tree.hierarchies and not f"{path}/".startswith(f"{tree.cgroup}/"):
                yield f"process {pid}: its cgroup {hierarchy} is {path}, expected {tree.cgroup}"
        if label is not None and process.label.split(" ")[0] != label.partition(":")[2]:
            yield f"process {pid}: its security label is {process.label}, expected {label}"


def _of_namespace(kind: str, inode: int, live: LivePod, tree: Tree) -> str | None:
    """What is wrong with a namespace of the first process; None if it is the pod's."""
    node_inode = tree.node[namespaces.KINDS[kind][0]]
    asked = {ns["type"] for ns in live.spec["linux"].get("namespaces") or ()}
    if kind in tree.given and inode != tree.given[kind]:
        return "not the pod's"
    if kind not in asked and inode != node_inode:
        return "one of its own, expected the node's"
    if kind in asked - live.node_namespaces and inode == node_inode:
        return "the node's own"
    return None


def _of_mounts(dump: Dump, tree: Tree) -> Iterator[str]:
    seen = {mount.path: mount for mount in tree.mounts}  # the last is on top of the others
    wanted = _by_place(dump)
    for path in sorted(wanted.keys() ^ seen.keys()):
        yield f"mount {path} {'is missing' if path in wanted else 'is not in the dump'}"
    for path in sorted(wanted.keys() & seen.keys()):
        entry, mount = wanted[path], seen[path]
        has, should = flags(mount), entry.flags & mount_flags.ALL
        if has != should:
            yield f"mount {path} has flags {has:#x}, expected {should:#x}"
        propagation = {tag for tag in ("shared", "master") if getattr(entry, f"{tag}_id")}
        if mount.propagation != propagation:
            kinds = [" and ".join(sorted(p)) or "private" for p in (mount.propagation, propagation)]
            yield f"mount {path} is {kinds[0]}, expected {kinds[1]}"


def _by_place(dump: Dump) -> dict[str, criu.mnt_entry]:
    places = (mount.destination for mount in dumped_mounts(dump.mounts))
    return dict(zip(places, dump.mounts, strict=True))


def flags(mount: Mount) -> int:
    """Those of mount(2) that forbid something."""
    return sum(flag for name, flag in mount_flags.FLAGS.items() if name in mount.options)
