"""What the kernel shows of restored tasks, held against a real dump: what differs is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from grit_runtime.dump import readback_images
from grit_runtime.model import restored_check, seccomp
from grit_runtime.model.dump import DumpedThread
from grit_runtime.model.mount_plan import LiveMount, dumped_mounts
from grit_runtime.model.restored_check import Descriptor, Images, Mount, Process, Thread, Tree
from tests.model.test_privilege import GOLDENS, pod, read

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from grit_runtime.model.dump import Dump
    from grit_runtime.proto import criu_pb2 as criu

CONTAINER = "criu-4.2/root"
NODE = dict.fromkeys(("pid", "net", "ipc", "uts", "mnt", "user", "cgroup"), 1)
OWN = NODE | dict.fromkeys(("pid", "net", "ipc", "uts", "mnt"), 2)
GIVEN = {"network": 2, "ipc": 2, "uts": 2}
CGROUP = "/kubepods/pod/container"
DEAD = 2
NAMES = {1: "ro", 2: "nosuid", 4: "nodev", 8: "noexec"}


def as_dumped(dump: Dump, more: Images) -> Tree:
    """What the kernel shows when CRIU has done all that the dump says."""
    processes = {
        task.pid: process(dump, more, task)
        for task in dump.tasks
        if dump.cores[task.pid].tc.task_state != DEAD
    }
    mounts = [
        Mount(
            mount.destination,
            frozenset(name for flag, name in NAMES.items() if entry.flags & flag),
            frozenset(tag for tag in ("shared", "master") if getattr(entry, f"{tag}_id")),
        )
        for mount, entry in zip(dumped_mounts(dump.mounts), dump.mounts, strict=True)
    ]
    return Tree(processes, mounts, NODE, GIVEN, CGROUP, frozenset({"freezer"}))


def process(dump: Dump, more: Images, task: criu.pstree_entry) -> Process:
    core = dump.cores[task.pid]
    files = {file.id: file for file in dump.files}
    return Process(
        threads={tid: thread(dump, tid, task.pid) for tid in {task.pid, *task.threads}},
        oom_score_adj=core.tc.oom_score_adj,
        limits=[(limit.cur, limit.max) for limit in core.tc.rlimits.rlimits],
        namespaces=OWN,
        cgroups={"freezer": CGROUP, "misc": "/"},
        descriptors={
            entry.fd: descriptor(files[entry.id], entry) for entry in more.descriptors[task.pid]
        },
        is_dumpable=None,
        label="",
    )


def thread(dump: Dump, tid: int, leader: int) -> Thread:
    core = dump.cores[tid].thread_core
    creds = core.creds
    filters = seccomp.chain(
        DumpedThread("", dump.cores[tid], dump.cores[leader]),
        dump.seccomp.seccomp_filters if dump.seccomp else (),
    )
    sets = {
        line: f"{sum(word << 32 * at for at, word in enumerate(getattr(creds, field))):016x}"
        for field, line in (
            ("cap_inh", "CapInh"),
            ("cap_prm", "CapPrm"),
            ("cap_eff", "CapEff"),
            ("cap_bnd", "CapBnd"),
            ("cap_amb", "CapAmb"),
        )
    }
    status = {
        "Uid": f"{creds.uid}\t{creds.euid}\t{creds.suid}\t{creds.fsuid}",
        "Gid": f"{creds.gid}\t{creds.egid}\t{creds.sgid}\t{creds.fsgid}",
        "Groups": " ".join(map(str, creds.groups)),
        "NoNewPrivs": str(creds.no_new_privs),
        "Seccomp": "2" if filters else str(core.seccomp_mode),
        "Seccomp_filters": str(len(filters)),
        **sets,
    }
    return Thread(status, core.sched_policy, core.sched_prio, core.sched_nice)


def descriptor(file: criu.file_entry, entry: criu.fdinfo_entry) -> Descriptor:
    kinds = ("reg", "pipe", "isk", "usk", "efd", "epfd", "sgfd", "ify")
    flags = next((getattr(file, kind).flags for kind in kinds if file.HasField(kind)), 0)
    close = os.O_CLOEXEC if entry.flags else 0
    return Descriptor(flags | close, file.reg.pos, file.isk.state == 10)


DUMP = read(CONTAINER)
_FD = os.open(Path(GOLDENS, CONTAINER), os.O_RDONLY)
MORE = readback_images.read(_FD, DUMP)
os.close(_FD)
TREE = as_dumped(DUMP, MORE)
LIVE = pod(CONTAINER)
INIT = 1


def told(tree: Tree) -> list[str]:
    return list(restored_check.differences(DUMP, MORE, LIVE, tree))


def with_process(**fields: Any) -> Tree:
    changed = TREE.processes[INIT]._replace(**fields)
    return TREE._replace(processes={**TREE.processes, INIT: changed})


def with_status(**lines: str) -> Tree:
    old = TREE.processes[INIT].threads[INIT]
    new = old._replace(status={**old.status, **lines})
    return with_process(threads={**TREE.processes[INIT].threads, INIT: new})


def without(mapping: Any, key: Any) -> dict[Any, Any]:
    return {name: value for name, value in mapping.items() if name != key}


def mounts(change: Callable[[Mount], Mount | None]) -> Tree:
    changed = (change(mount) if mount.path == "/etc/hosts" else mount for mount in TREE.mounts)
    return TREE._replace(mounts=[mount for mount in changed if mount is not None])


def test_what_was_dumped_is_what_was_restored() -> None:
    assert told(TREE) == []


@pytest.mark.parametrize(
    ("tree", "line"),
    [
        (TREE._replace(processes=without(TREE.processes, INIT)), "process 1: is missing"),
        (
            TREE._replace(processes={**TREE.processes, 99: TREE.processes[INIT]}),
            "process 99: is not in the dump",
        ),
        (with_process(threads=without(TREE.processes[INIT].threads, INIT)), "thread 1: is missing"),
        (with_status(Uid="0\t0\t0\t7"), "Uid is ['0', '0', '0', '7']"),
        (with_status(Gid="1\t0\t0\t0"), "Gid is ['1', '0', '0', '0']"),
        (with_status(Groups="7"), "Groups is [7]"),
        *[
            (with_status(**{name: "3f"}), f"{name} is 0x3f")
            for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
        ],
        (with_status(NoNewPrivs="7"), "NoNewPrivs is 7"),
        (with_status(Seccomp="0"), "Seccomp is 0, expected 2"),
        (with_status(Seccomp_filters="9"), "Seccomp_filters is 9, expected 1"),
        (with_process(oom_score_adj=-999), "oom_score_adj is -999"),
        (with_process(limits=[(1, 2)] * 16), "resource limit 0 is 1/2"),
        (with_process(namespaces=NODE), "its pid namespace is the node's own"),
        (with_process(namespaces=OWN | {"net": 3}), "its network namespace is not the pod's"),
        (with_process(cgroups={"freezer": "/other"}), "its cgroup freezer is /other"),
        (with_process(descriptors={}), "descriptor 0 is missing"),
        (
            with_process(descriptors={**TREE.processes[INIT].descriptors, 77: Descriptor(0, 0)}),
            "descriptor 77 is not in the dump",
        ),
        (mounts(lambda _: None), "mount /etc/hosts is missing"),
        (
            mounts(lambda mount: mount._replace(options=mount.options ^ {"ro"})),
            "mount /etc/hosts has flags 0x1, expected 0x0",
        ),
        (
            mounts(lambda mount: mount._replace(propagation=frozenset({"shared"}))),
            "mount /etc/hosts is shared, expected private",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_fact_that_differs_is_told(tree: Tree, line: str) -> None:
    assert any(line in one for one in told(tree)), told(tree)


def test_a_mount_with_other_flags_is_to_be_made_what_it_should_be() -> None:
    wrong = mounts(lambda mount: mount._replace(options=frozenset({"ro"}))).mounts
    assert restored_check.wrong_mount_flags(DUMP, wrong) == {"/etc/hosts": 0}
    assert restored_check.wrong_mount_flags(DUMP, TREE.mounts) == {}


def test_what_a_spec_forbids_and_a_mount_allows_is_named() -> None:
    live = [
        LiveMount("/v", "/s", "bind", ("rbind", "ro", "nosuid")),
        LiveMount("/w", "/s", "bind", ()),
    ]
    seen = [Mount("/v", frozenset({"nosuid"}), frozenset()), Mount("/w", frozenset(), frozenset())]
    assert restored_check.wider(live, seen) == ["/v not ro"]
