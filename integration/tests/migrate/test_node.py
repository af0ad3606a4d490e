"""The harness itself: nodes run pods as a Kubernetes node does, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from integration.node import cache, cgroup, images, rootfs
from integration.node.node import LostNodeError, Node
from integration.pods.kubelet import running, sandbox
from integration.pods.pod_spec import (
    ContainerSpec,
    EmptyDir,
    PodSpec,
    Resources,
    Security,
    VolumeMount,
)
from integration.pods.workload import SHELL_COUNTER, shell_pod

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.node.network import Network
    from integration.node.rootfs import Edition
    from integration.tests.conftest import Nodes, RunPod

# Of cgroup version 1 and of version 2; one of them is there.
MEMORY_LIMIT = "/sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max"
VANISH_TIMEOUT_S = 30

# Holds a node with a frozen container until it is killed; says what the node may leave traces by.
OWNER = """
import sys
from integration.node import rootfs
from integration.node.network import Network
from integration.node.node import Node
from integration.pods.kubelet import run_pod
from integration.pods.workload import shell_pod
with Network() as network, Node(
    rootfs.EDITIONS[sys.argv[1]], name="doomed", network=network
) as node:
    pod = run_pod(node, shell_pod("frozen", "sleep 1000 & wait"))
    node.run(["runc", "--root", "/run/containerd/runc/k8s.io", "pause", pod.container_ids["main"]])
    print(node.id, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("handler", ["runc", "grit"])
def test_pod_runs_and_logs_under_each_runtime_handler(
    nodes: Nodes, run_pod: RunPod, handler: str
) -> None:
    pod = run_pod(nodes.a, shell_pod("counter", SHELL_COUNTER, handler=handler))
    assert pod.wait_for_log("main", "count 3\n").startswith("count 1\ncount 2\n")


@pytest.mark.parametrize("handler", ["runc", ""])
def test_exec_sees_what_kubelet_gave_the_container(
    nodes: Nodes, run_pod: RunPod, handler: str
) -> None:
    main = ContainerSpec(
        name="main",
        image=images.PYTHON,
        command=("sleep", "1000"),
        env=(("COLOUR", "blue"),),
        mounts=(VolumeMount("data", "/data"), VolumeMount("memory", "/memory")),
        resources=Resources(memory_bytes=64 << 20),
        security=Security(user=1000, group=1000, groups=(2000,)),
    )
    volumes = (EmptyDir("data"), EmptyDir("memory", in_memory=True))
    spec = PodSpec(name="seen", containers=(main,), volumes=volumes, runtime_handler=handler)
    script = "id -u; id -G; hostname; echo $COLOUR; cat /etc/hosts; touch /data/a /memory/b; "
    script += "cat /var/run/secrets/kubernetes.io/serviceaccount/token"
    pod = run_pod(nodes.a, spec)
    reply = pod.exec_sync("main", ["sh", "-c", script])
    seen = reply.stdout.decode().splitlines()
    assert seen[:4] == ["1000", "1000 2000", "seen", "blue"]
    assert f"{pod.ip}\tseen" in seen
    assert seen[-1] == f"token of pod {spec.uid}"
    limit = pod.exec_sync("main", ["sh", "-c", f"cat {MEMORY_LIMIT} 2>/dev/null"])
    assert int(limit.stdout) == 64 << 20


def test_failed_exec_has_its_exit_code_and_both_streams(nodes: Nodes, run_pod: RunPod) -> None:
    pod = run_pod(nodes.a, shell_pod("exec", "sleep 1000 & wait"))
    reply = pod.exec_sync("main", ["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (reply.stdout, reply.stderr, reply.exit_code) == (b"out\n", b"err\n", 7)


def test_ended_container_tells_its_exit_code_and_starts_again_in_the_same_sandbox(
    nodes: Nodes,
    run_pod: RunPod,
) -> None:
    pod = run_pod(nodes.a, shell_pod("again", "exit 3"))
    assert pod.wait_exited("main").exit_code == 3
    first = pod.container_ids["main"]
    pod.restart("main")
    assert pod.wait_exited("main").metadata.attempt == 1
    assert pod.container_ids["main"] != first


def test_sandbox_without_containers_can_be_removed(nodes: Nodes) -> None:
    with sandbox(nodes.a, shell_pod("empty", SHELL_COUNTER)) as pod:
        pod_dir = nodes.a.path(pod.pod_dir)
        assert pod_dir.is_dir()
    assert not pod_dir.exists()


def test_containers_go_on_while_containerd_restarts(nodes: Nodes, run_pod: RunPod) -> None:
    pod = run_pod(nodes.a, shell_pod("survivor", SHELL_COUNTER))
    pid = pod.pid("main")
    nodes.a.stop_containerd()
    nodes.a.start_containerd()
    assert pod.pid("main") == pid
    pod.wait_for_log("main", f"count {pod.logs('main').count('count') + 5}\n")


def test_pods_of_two_nodes_reach_each_other(nodes: Nodes, run_pod: RunPod) -> None:
    server = shell_pod("server", "echo greetings | nc -l -p 7000 & wait")
    pod = run_pod(nodes.a, server)
    client = run_pod(nodes.b, shell_pod("client", SHELL_COUNTER))
    pod.exec_sync("main", ["sh", "-c", "until netstat -tln | grep -q :7000; do sleep 0.1; done"])
    assert client.exec_sync("main", ["nc", pod.ip, "7000"]).stdout == b"greetings\n"


def test_command_that_runs_too_long_is_killed_with_its_children(nodes: Nodes) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        nodes.a.run(["sh", "-c", "sleep 4321 & wait"], timeout_s=0.5)
    assert nodes.a.run(["pgrep", "-f", "^sleep 4321"], check=False).stdout == ""


def test_command_can_be_killed_by_its_own_pid(nodes: Nodes) -> None:
    with nodes.a.popen(
        ["sh", "-c", "echo ready; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(nodes.a.command_pid(process), signal.SIGKILL)
        assert process.wait(5) != 0


def test_lost_node_is_told_from_a_failed_command(edition: Edition, network: Network) -> None:
    with Node(edition, name="lost", network=network) as node:
        os.kill(node.pid, signal.SIGKILL)
        with pytest.raises(LostNodeError):
            node.run(["sleep", "1000"])


def test_node_leaves_nothing_behind(edition: Edition, network: Network) -> None:
    links = links_of_this_machine()
    with (
        Node(edition, name="tidy", network=network) as node,
        running(node, shell_pod("counter", SHELL_COUNTER)),
    ):
        assert traces(node.id)
    assert traces(node.id) == []
    assert links_of_this_machine() == links


def test_killed_owner_leaves_nothing_behind(edition: Edition) -> None:
    links = links_of_this_machine()
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, edition.suite],
        cwd=rootfs.REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        node_id = owner.stdout.readline().strip()
        owner.kill()
        owner.communicate(timeout=VANISH_TIMEOUT_S)  # until the network's process has closed it too
    wait_until_vanished(node_id)
    assert links_of_this_machine() == links


def test_next_node_sweeps_what_a_killed_supervisor_left(edition: Edition, network: Network) -> None:
    node = Node(edition, name="orphan", network=network)
    node.__enter__()
    node.kill_supervisor()
    with pytest.raises(LostNodeError):
        node.__exit__()
    assert traces(node.id)
    with Node(edition, name="sweeper", network=network):
        assert traces(node.id) == []


def traces(node_id: str) -> list[str]:
    """All that is left of a node on this machine. Its processes, in containers or not, see mounts
    from its directory; a namespace lasts no longer than the last of them."""
    found = [str(path) for path in (cache.CACHE / "nodes").glob(f"{node_id}*")]
    found += [name for name in cgroup.leftovers("grit-node-") if name == node_id]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            seen = (process / "cmdline").read_text() + (process / "mountinfo").read_text()
        except OSError:
            continue  # it has ended, or may do more than this machine's root: not of a node
        if node_id in seen:
            found.append(str(process))
    return found


def wait_until_vanished(node_id: str) -> None:
    """Wait for a supervisor that nobody else waits for."""
    deadline = time.monotonic() + VANISH_TIMEOUT_S
    while left := traces(node_id):
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.1)


def links_of_this_machine() -> set[str]:
    """Names of the network links outside all nodes."""
    return {path.name for path in Path("/sys/class/net").iterdir()}
