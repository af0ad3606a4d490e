"""What no restore would take is refused when the checkpoint is taken, and its source goes on."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from integration.pods import checkpoints
from integration.pods.pod_spec import Resources, Security
from integration.tests.matrix import cases, single

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.node.node import Node
    from integration.pods.kubelet import Pod
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

STILL = "check(lambda: 0)"
OVERLAY = """
subprocess.run(["/bin/sh", "-ec", '''
    mkdir /over; mount -t tmpfs none /over; mkdir /over/lower /over/upper /over/work /over/merged
    cd /over; mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work none merged
'''], check=True)
"""
UNSENT = """
listener = socket.create_server(("127.0.0.1", 5555))
one = socket.create_connection(("127.0.0.1", 5555))
other, _ = listener.accept()
one.setblocking(False)
try:
    while True:
        one.send(bytes(65536))
except BlockingIOError:
    pass
"""


def refusal(node: Node, source: Pod, name: str, *options: str) -> str:
    """Why a checkpoint of *source* is not sealed; nothing of it is left, and the source goes on."""
    refused = checkpoints.take(source, name, *options, check=False)
    assert refused.returncode != 0
    assert checkpoints.left_by_checkpoints(node) == []
    assert not checkpoints.directory(node, name).exists()
    assert "RESULT SAME" in single.go_on(source)
    return refused.stderr


@pytest.mark.case("a process that has more than its pod's spec allows", cases.REFUSED)
@pytest.mark.parametrize(
    "options",
    [(), ("--after", "frozen"), ("--after", "stopped", "--pod-is-going")],
    ids=["running", "frozen", "stopped"],
)
def test_a_process_with_more_than_its_spec_is_named(
    nodes: Nodes, run_pod: RunPod, options: tuple[str, ...]
) -> None:
    source = single.started(nodes, run_pod, single.pod("raised", STILL))
    nodes.a.run(["renice", "-n", "-5", "-p", str(source.pid(single.CONTAINER))])
    told = refusal(nodes.a, source, "raised", *options)
    assert "container main cannot come back: task 1 (python3): sched_nice -5" in told
    assert "end it, or what it has beyond its pod's own spec" in told


@pytest.mark.case("a file system that a privileged container has mounted itself", cases.REFUSED)
def test_a_file_system_of_its_own_is_named(nodes: Nodes, run_pod: RunPod) -> None:
    spec = single.pod("mounter", f"{OVERLAY}{STILL}", security=Security(privileged=True))
    told = refusal(nodes.a, single.started(nodes, run_pod, spec), "mounter")
    assert "mount /over/merged: file system type 17 of the checkpoint's own" in told
    assert "unmount it for the checkpoint" in told


@pytest.mark.case("a mount namespace within a privileged container", cases.REFUSED)
def test_a_mount_namespace_of_its_own_is_named(nodes: Nodes, run_pod: RunPod) -> None:
    program = f"""
child = os.fork()
if child == 0:
    libc.unshare(0x20000)
    open("/apart", "w").close()
    time.sleep(10000)
while not os.path.exists("/apart"):
    time.sleep(0.05)
{STILL}
"""
    spec = single.pod("apart", program, security=Security(privileged=True))
    told = refusal(nodes.a, single.started(nodes, run_pod, spec), "apart")
    assert re.search(r"process \d+ in container main is in a mnt namespace of its own", told)


@pytest.mark.case("bytes that were never sent, on the node's own network", cases.REFUSED)
def test_unsent_bytes_on_the_nodes_network_are_refused(nodes: Nodes, run_pod: RunPod) -> None:
    spec = replace(single.pod("on-host", f"{UNSENT}{STILL}"), host_network=True)
    told = refusal(nodes.a, single.started(nodes, run_pod, spec), "on-host")
    assert "a TCP connection has bytes that were never sent" in told


@pytest.mark.case("grit inspect --against shows all that a restore would refuse", cases.REFUSED)
def test_all_refusals_are_shown_at_once(nodes: Nodes, run_pod: RunPod) -> None:
    program = f"memory = os.urandom(64 << 20)\n{STILL}"
    spec = replace(single.pod("large", program), share_process_namespace=True)
    source = single.started(nodes, run_pod, spec)
    checkpoints.take(source, "large")
    resources = Resources(memory_bytes=48 << 20)
    run_pod(nodes.a, single.pod("small", STILL, security=Security(user=1000), resources=resources))
    inspect = ["grit", "inspect", f"{checkpoints.ROOT}/default/large", "--against"]
    assert "refused" not in nodes.a.run([*inspect, "default/large"]).stdout
    shown = nodes.a.run([*inspect, "default/small"], check=False)
    assert shown.returncode == 1
    assert re.search(r"  refused: task \d+ \(python3\): uid 0; the pod allows 1000", shown.stdout)
    assert "but the container's memory limit is 50331648" in shown.stdout
