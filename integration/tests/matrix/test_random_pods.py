"""Whatever a pod is made of: after two moves the kernel shows the same of it."""

from __future__ import annotations

import json
import os

import pytest

from integration.node import rootfs
from integration.pods import checkpoints
from integration.tests.matrix import cases, random_pods, single

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from integration.pods.kubelet import Pod
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

IN_CI = 10
LONG = 200
# Those that have failed once.
KEPT: tuple[int, ...] = ()

# Runs on the node: all that is read back of a container, but for what is each pod's own.
READ = """
import json, os, sys
from grit_runtime.host import cgroup, config_json, procfs
from grit_runtime.model.manifest import plain
from grit_runtime.tasks import restored_tasks, task_facts
init_pid, bundle_dir = int(sys.argv[1]), sys.argv[2]
pids = procfs.pids_by_container_pid(cgroup.pids(cgroup.of(init_pid)))
tree = restored_tasks.read(pids, init_pid, config_json.read(bundle_dir))
KEPT = ("Name", "Umask", "Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "Seccomp_filters",
        "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb",
        "THP_enabled", "Threads")
# That a directory was wanted and a file may be large says nothing once it is open.
AT_OPEN_ALONE = os.O_DIRECTORY | 0o100000
found = {}
for one in task_facts.read(pids, {}):
    for kind in ("threads", "owners", "sockets"):
        for each in getattr(one, kind):
            found[f"process {one.pid}: {kind} {each[0]}"] = plain(each)
    found[f"process {one.pid}: core_dump_filter"] = one.core_dump_filter
for pid, one in sorted(tree.processes.items()):
    for tid, thread in sorted(one.threads.items()):
        found |= {f"thread {tid}: {key}": thread.status.get(key) for key in KEPT}
        found[f"thread {tid}"] = [thread.policy, thread.priority, thread.nice]
    for fd, held in sorted(one.descriptors.items()):
        if fd > 2:
            flags = oct(held.flags & ~AT_OPEN_ALONE)
            found[f"process {pid}: descriptor {fd}"] = [flags, held.position, held.is_listening]
    found[f"process {pid}"] = [one.oom_score_adj, one.limits, one.is_dumpable]
for mount in tree.mounts:
    found[f"mount {mount.path}"] = [sorted(mount.options), sorted(mount.propagation)]
print(json.dumps(found))
"""


def numbers() -> list[int]:
    """Those in CI; with --long many more."""
    return [*KEPT, *range(LONG if "GRIT_LONG" in os.environ else IN_CI)]


def seen(pod: Pod) -> dict[str, Any]:
    """What the kernel shows of the pod's container."""
    container_id = pod.container_ids[single.CONTAINER]
    bundle_dir = f"/run/containerd/io.containerd.runtime.v2.task/k8s.io/{container_id}"
    python = f"/{rootfs.VENV}/bin/python"
    done = pod.node.run([python, "-c", READ, str(pod.pid(single.CONTAINER)), bundle_dir])
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    different = [
        f"{key}: {before.get(key)}, then {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    assert not different, "\n".join(different)


@pytest.mark.parametrize("number", numbers())
@pytest.mark.case("pods put together by chance, moved twice", cases.RESTORED)
def test_a_pod_is_after_two_moves_what_it_was(nodes: Nodes, run_pod: RunPod, number: int) -> None:
    for node in nodes:
        node.run(["sh", "-c", random_pods.LAY_OUT])
    if "forky" not in nodes.a.edition.suite:
        number += 1000  # other pods on the other edition
    spec = random_pods.pod(number)
    source = single.started(nodes, run_pod, spec)
    before = seen(source)
    cases.move(nodes, source, spec.name)
    second = run_pod(nodes.b, single.again(spec, (("grit.dev/restore-name", spec.name),)))
    assert_same(before, seen(second))
    name = f"{spec.name}-2"
    checkpoints.take(second, name, "--after", "frozen")
    checkpoints.carry(nodes.b, nodes.a, name)
    second.stop(grace_period_s=0)
    second.remove()
    third = run_pod(nodes.a, single.again(spec, (("grit.dev/restore-name", name),)))
    assert_same(before, seen(third))
