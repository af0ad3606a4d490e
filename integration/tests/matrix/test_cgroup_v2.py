"""A node on which cgroup v2 alone is mounted, whatever this machine has."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.node import rootfs
from integration.node.node import RUNC, Node, write_launchers
from integration.pods import checkpoints, kubelet, workload
from integration.tests.matrix import cases, single

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.node.network import Network
    from integration.node.rootfs import Edition
    from integration.tests.conftest import Nodes, RunPod

# Controllers that v1 has taken are not in v2, and containerd sets limits for each pod.
RUNC_WITHOUT_LIMITS = f"""\
#!/usr/bin/python3
import json, os, sys
if "--bundle" in sys.argv:
    path = sys.argv[sys.argv.index("--bundle") + 1] + "/config.json"
    with open(path) as file:
        spec = json.load(file)
    spec["linux"]["resources"] = {{"devices": spec["linux"]["resources"]["devices"]}}
    with open(path, "w") as file:
        json.dump(spec, file)
os.execv("{RUNC}", ["runc", *sys.argv[1:]])
"""
WITHOUT_LIMITS = Path("/usr/local/sbin/runc-without-limits")
UNIFY = "umount --recursive /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup"


@pytest.fixture
def unified(edition: Edition, network: Network) -> Iterator[Node]:
    """A node whose containerd finds nothing but cgroup v2."""
    with Node(edition, name="node-v", network=network) as node:
        node.stop_containerd()
        done = node.run(["sh", "-ec", UNIFY], check=False)
        if done.returncode != 0:
            pytest.skip(f"this machine mounts no cgroup v2: {done.stderr.strip()}")
        if "memory" not in node.path(Path("/sys/fs/cgroup/cgroup.controllers")).read_text():
            leave_limits_out(node)
        node.start_containerd()
        yield node


def leave_limits_out(node: Node) -> None:
    """Have grit-runtime run a runc that sets no limits."""
    program = node.path(WITHOUT_LIMITS)
    program.write_text(RUNC_WITHOUT_LIMITS)
    program.chmod(0o755)
    python = f"/usr/bin/python{node.edition.python}"
    packages = Path("/") / rootfs.site_packages(node.edition)
    write_launchers(node.root, python=python, site_packages=packages, runc=str(WITHOUT_LIMITS))


@pytest.mark.case("cgroup v2, held frozen and deleted so", cases.RESTORED)
def test_a_pod_is_frozen_and_restored_on_cgroup_v2(unified: Node) -> None:
    with kubelet.running(unified, workload.counter_pod("unified-a")) as source:
        workload.wait_for_count(source, 5)
        checkpoints.take(source, "unified", "--after", "frozen")
        (frozen,) = unified.path(Path("/sys/fs/cgroup/kubepods")).rglob(
            f"{source.container_ids['counter']}/cgroup.freeze"
        )
        assert frozen.read_text() == "1\n"
        source.stop(grace_period_s=0)
        source.remove()
    asking = (("grit.dev/restore-name", "unified"),)
    with kubelet.running(unified, workload.counter_pod("b", annotations=asking)) as target:
        workload.assert_goes_on_from(target, 5, node=unified)
        seen = target.exec_sync("counter", ["cat", "/proc/1/cgroup"]).stdout.decode()
        assert seen.endswith("0::/\n")


@pytest.mark.case("cgroup v2 beside v1, the container at its root", cases.RESTORED)
def test_a_container_at_the_root_of_v2_is_restored(nodes: Nodes, run_pod: RunPod) -> None:
    v2 = Path("/sys/fs/cgroup/unified/cgroup.procs")
    if not nodes.a.path(v2).exists():
        pytest.skip("this machine has no cgroup v2 beside v1")
    spec = single.pod("at-root", "check(lambda: 0)")
    source = run_pod(nodes.a, spec)
    nodes.a.run(["sh", "-c", f"echo {source.pid(single.CONTAINER)} > {v2}"])
    source.wait_for_log(single.CONTAINER, "ready\n")
    cases.move(nodes, source, "at-root")
    asking = (("grit.dev/restore-name", "at-root"),)
    single.go_on(run_pod(nodes.b, single.again(spec, asking)))
