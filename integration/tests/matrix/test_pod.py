"""Whole pods: several containers at one instant, init containers, sidecars, what they share."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from integration.node import images, rootfs
from integration.node.cri import CriError
from integration.pods import checkpoints, kubelet, workload
from integration.pods.pod_spec import ContainerSpec, EmptyDir, PodSpec, Resources, VolumeMount
from integration.tests.matrix import cases
from integration.tests.matrix.test_connections import netns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.pods.kubelet import Pod
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

# Counts in SysV shared memory, which its pod's other containers could attach.
SYSV = """
import ctypes, time
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
at = libc.shmat(libc.shmget(0x1234, 4096, 0o1666), None, 0)
count = ctypes.cast(at, ctypes.POINTER(ctypes.c_int))
while True:
    count[0] += 1
    print(count[0], flush=True)
    time.sleep(0.05)
"""

COUNTER = ContainerSpec(
    name="counter",
    image=images.PYTHON,
    command=("/usr/bin/python3", "-c", workload.COUNTER, "1"),
)


def shell(name: str, script: str, **fields: object) -> ContainerSpec:
    """A container of busybox that runs *script*."""
    command = ("/bin/sh", "-c", script)
    return ContainerSpec(name=name, image=images.BUSYBOX, command=command, **fields)  # type: ignore[arg-type]


def restoring(name: str, **own: str) -> tuple[tuple[str, str], ...]:
    more = ((f"grit.dev/{key.replace('_', '-')}", value) for key, value in own.items())
    return (("grit.dev/restore-name", name), *more)


def run_init(pod: Pod, name: str) -> None:
    """Run an init container to its end, as kubelet does before the others."""
    pod.create(name)
    pod.start(name)
    assert pod.wait_exited(name).exit_code == 0


INIT = shell("init", "echo ran; echo ran >/ran")


def init_pod(name: str, annotations: tuple[tuple[str, str], ...] = ()) -> PodSpec:
    return PodSpec(name=name, containers=(INIT, COUNTER), annotations=annotations)


@pytest.fixture(scope="module")
def checkpoint(nodes: Nodes, fresh_nodes: None) -> None:  # noqa: ARG001 -- emptied before
    """On node B: a checkpoint of a pod with an init container that had exited 0."""
    with kubelet.sandbox(nodes.a, init_pod("init-a")) as source:
        run_init(source, "init")
        source.create("counter")
        source.start("counter")
        workload.wait_for_count(source, 5)
        checkpoints.take(source, "init")
    checkpoints.carry(nodes.a, nodes.b, "init")


@pytest.mark.case("an init container that had exited", cases.RESTORED)
@pytest.mark.usefixtures("checkpoint")
@pytest.mark.parametrize(("asked", "wrote"), [({}, "ran\n"), ({"completed": "skip"}, "")])
def test_an_init_container_runs_again_unless_it_is_to_be_skipped(
    nodes: Nodes, asked: dict[str, str], wrote: str
) -> None:
    with kubelet.sandbox(nodes.b, init_pod("init-b", restoring("init", **asked))) as pod:
        run_init(pod, "init")
        assert pod.logs("init") == wrote
        pod.create("counter")
        pod.start("counter")
        workload.assert_goes_on_from(pod, 5, node=nodes.b)
        became = [(one["container"], one["outcome"]) for one in checkpoints.outcomes(pod)]
        assert became == [("init", "skipped" if asked else "cold"), ("counter", "restored")]


@pytest.mark.case("completed: skip, with a volume that was not captured", cases.REFUSED)
def test_what_an_init_container_wrote_must_be_there_to_skip_it(
    nodes: Nodes, run_pod: RunPod
) -> None:
    init = shell("init", "echo ran >/work/ran", mounts=(VolumeMount("work", "/work"),))
    main = shell("main", "while true; do sleep 1; done", mounts=(VolumeMount("work", "/work"),))

    def spec(name: str, *annotations: tuple[str, str]) -> PodSpec:
        return PodSpec(
            name=name,
            containers=(init, main),
            volumes=(EmptyDir("work"),),
            annotations=annotations,
        )

    source = run_pod(nodes.a, spec("prepared"))
    source.wait_exited("init")
    cases.move(nodes, source, "prepared")
    reason = cases.refusal(nodes, spec("unprepared", *restoring("prepared", completed="skip")))
    assert "does not hold its writable volume /work" in reason


@pytest.mark.case("a container listed as running without its images", cases.REFUSED)
def test_a_running_container_without_images_is_an_error(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, workload.counter_pod("bare"))
    workload.wait_for_count(source, 3)
    cases.move(nodes, source, "bare")
    path = checkpoints.directory(nodes.b, "bare")
    (path / "counter").rename(path / "other")
    checkpoints.seal_anew(path)
    reason = cases.refusal(nodes, workload.counter_pod("bare-b", annotations=restoring("bare")))
    assert "lists container counter as running but holds no images of it" in reason


@pytest.mark.case("several containers, one that CRIU cannot dump", cases.REFUSED)
def test_one_container_that_fails_to_dump_leaves_nothing(nodes: Nodes, run_pod: RunPod) -> None:
    talker = ContainerSpec(
        name="talker", image=images.PYTHON, command=("/usr/bin/python3", "-c", workload.UNDUMPABLE)
    )
    pod = run_pod(nodes.a, PodSpec(name="half", containers=(COUNTER, talker)))
    workload.wait_for_count(pod, 3)
    pod.wait_for_log("talker", "ready\n")
    failed = checkpoints.take(pod, "half", check=False)
    assert "container talker: dump failed" in failed.stderr
    assert checkpoints.left_by_checkpoints(nodes.a) == []
    assert not checkpoints.directory(nodes.a, "half").exists()
    count = len(pod.logs("counter").split())
    workload.wait_for_count(pod, count + 5)
    lines = len(pod.logs("talker").splitlines())
    pod.wait_for_log("talker", "alive\n" * (lines + 3))


def python(name: str, program: str, **fields: object) -> ContainerSpec:
    command = ("/usr/bin/python3", "-c", program, "1")
    return ContainerSpec(name=name, image=images.PYTHON, command=command, **fields)  # type: ignore[arg-type]


def goes_on(pod: Pod, name: str) -> None:
    """The container's log has every number once, and it counts on."""
    counted = [int(line) for line in pod.wait_for_log(name, "\n60\n").split()]
    assert counted == list(range(1, len(counted) + 1))


@pytest.mark.case("SysV shared memory of one container, seen by all", cases.RESTORED)
def test_sysv_memory_is_restored_once(nodes: Nodes, run_pod: RunPod) -> None:
    def spec(name: str, *annotations: tuple[str, str]) -> PodSpec:
        containers = (COUNTER, python("sysv", SYSV))
        return PodSpec(name=name, containers=containers, annotations=annotations)

    source = run_pod(nodes.a, spec("sysv-a"))
    source.wait_for_log("sysv", "\n5\n")
    cases.move(nodes, source, "sysv")
    target = run_pod(nodes.b, spec("sysv-b", *restoring("sysv")))
    goes_on(target, "counter")
    goes_on(target, "sysv")


@pytest.mark.case("SysV shared memory of two containers", cases.REFUSED)
def test_sysv_memory_that_two_share_is_refused(nodes: Nodes, run_pod: RunPod) -> None:
    containers = (python("one", SYSV), python("two", SYSV))
    source = run_pod(nodes.a, PodSpec(name="two-a", containers=containers))
    for name in ("one", "two"):
        source.wait_for_log(name, "\n")
    refused = checkpoints.take(source, "two", check=False)
    assert "containers one and two have attached SysV shared memory" in refused.stderr
    assert checkpoints.left_by_checkpoints(nodes.a) == []


# Two containers with a file open, or memory mapped, whose name one of them removes.
UNLINKS = """
import mmap, os, time
def until(path):
    while not os.path.exists(path):
        time.sleep(0.02)
file = open("{path}", "w+b")
file.truncate(4096)
shared = mmap.mmap(file.fileno(), 4096)
open("/dev/shm/made", "w").close()
until("/dev/shm/mapped")
os.unlink("{path}")
{then}
print("ready", flush=True)
time.sleep(1000)
"""
OPENS = """
import mmap, os, time
def until(path):
    while not os.path.exists(path):
        time.sleep(0.02)
until("/dev/shm/made")
file = open("{path}", "r+b")
shared = mmap.mmap(file.fileno(), 4096)
open("/dev/shm/mapped", "w").close()
print("ready", flush=True)
time.sleep(1000)
"""


@pytest.mark.case("a deleted file that two containers have", cases.REFUSED)
@pytest.mark.parametrize("path", ["/dev/shm/x", "/scratch/x"])
@pytest.mark.parametrize("then", ["pass", "file.close()"], ids=["open", "mapped"])
def test_a_deleted_file_of_two_containers_is_refused(
    nodes: Nodes, run_pod: RunPod, path: str, then: str
) -> None:
    mounts = (VolumeMount("scratch", "/scratch"),)
    containers = tuple(
        python(name, program.replace("{path}", path).replace("{then}", then), mounts=mounts)
        for name, program in (("one", UNLINKS), ("two", OPENS))
    )
    spec = PodSpec(name="torn", containers=containers, volumes=(EmptyDir("scratch"),))
    source = run_pod(nodes.a, spec)
    for name in ("one", "two"):
        source.wait_for_log(name, "ready\n")
    refused = checkpoints.take(source, "torn", "--capture", "emptydir:scratch", check=False)
    assert "/x was deleted, and is open in the containers one and two" in refused.stderr
    assert "freeze" not in refused.stderr
    assert checkpoints.left_by_checkpoints(nodes.a) == []


def sharing(name: str, *annotations: tuple[str, str], sidecar: str = "") -> PodSpec:
    """Two containers that count in one process namespace; *sidecar* is the script of a third."""
    more = (shell("sidecar", sidecar),) if sidecar else ()
    return PodSpec(
        name=name,
        containers=(COUNTER, python("other", workload.COUNTER), *more),
        annotations=annotations,
        share_process_namespace=True,
    )


@pytest.mark.case("shareProcessNamespace", cases.RESTORED)
def test_a_shared_process_namespace_is_shared_again(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, sharing("shared-a"))
    for name in ("counter", "other"):
        source.wait_for_log(name, "\n5\n")
    cases.move(nodes, source, "shared")  # held frozen, and killed so
    target = run_pod(nodes.b, sharing("shared-b", *restoring("shared")))
    for name in ("counter", "other"):
        goes_on(target, name)
    seen = target.exec_sync("counter", ["/bin/sh", "-c", "ps -o args"]).stdout.decode()
    assert "/pause" in seen
    assert seen.count("python3 -c") == 2


def number_in_pod(pod: Pod, name: str) -> int:
    """The first process of container *name*, as the pod's process namespace numbers it."""
    status = pod.node.run(["cat", f"/proc/{pod.pid(name)}/status"]).stdout
    (line,) = (line for line in status.splitlines() if line.startswith("NSpid:"))
    return int(line.split()[-1])


def take_number(pod: Pod, number: int, *, through: str) -> None:
    """Leave a process with *number* in the process namespace that container *through* is in."""
    taking = "sleep 1000 >/dev/null 2>&1 & echo $!"
    script = f"echo {number - 1} >/proc/sys/kernel/ns_last_pid; {taking}"
    enter = ["nsenter", "--pid", f"--target={pod.pid(through)}", "sh", "-c", script]
    assert int(pod.node.run(enter).stdout) == number


@pytest.mark.case("shareProcessNamespace, a number that is taken", cases.REFUSED)
def test_a_process_number_that_is_taken_is_named(nodes: Nodes) -> None:
    with kubelet.sandbox(nodes.a, sharing("busy-a")) as source:
        source.create("counter")
        source.start("counter")
        take_number(source, 1000, through="counter")  # the next ones are beyond what runc takes
        source.create("other")
        source.start("other")
        source.wait_for_log("other", "\n5\n")
        number = number_in_pod(source, "other")
        cases.move(nodes, source, "busy")
    spec = sharing("busy-b", *restoring("busy"), sidecar="sleep 1000")
    with kubelet.sandbox(nodes.b, spec) as pod:
        pod.create("sidecar")
        pod.start("sidecar")
        take_number(pod, number, through="sidecar")
        pod.create("other")
        with pytest.raises(CriError) as caught:
            pod.start("other")
    assert f"process number {number} of the dump is taken by sleep" in caught.value.details
    assert "start the checkpoint's containers in a new pod" in caught.value.details


@pytest.mark.case("a memory limit below the dumped memory", cases.REFUSED)
def test_memory_that_cannot_fit_is_refused_before_the_kernel_kills(
    nodes: Nodes, run_pod: RunPod
) -> None:
    source = run_pod(nodes.a, workload.counter_pod("large", ballast_mib=48))
    workload.wait_for_count(source, 3)
    cases.move(nodes, source, "large")
    spec = workload.counter_pod("small", annotations=restoring("large"))
    (container,) = spec.containers
    small = replace(container, resources=Resources(memory_bytes=32 << 20))
    reason = cases.refusal(nodes, replace(spec, containers=(small,)))
    assert "but the container's memory limit is 33554432; raise resources.limits.memory" in reason


@pytest.mark.case("an exec probe that fires during the freeze", cases.RESTORED)
def test_a_probe_during_the_freeze_fails_and_harms_nothing(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, workload.counter_pod("probed"))
    workload.wait_for_count(source, 5)
    checkpoints.take(source, "probed", "--after", "frozen")
    with pytest.raises(CriError) as caught:
        source.exec_sync("counter", ["/bin/true"])
    assert "paused" in caught.value.details
    checkpoints.carry(nodes.a, nodes.b, "probed")
    nodes.a.run(["grit", "resume", "default/probed"])
    assert source.exec_sync("counter", ["/bin/true"]).exit_code == 0
    workload.assert_goes_on_from(source, 5, node=nodes.a)
    target = workload.counter_pod("probed-b", annotations=restoring("probed"))
    workload.assert_goes_on_from(run_pod(nodes.b, target), 5, node=nodes.b)


SERVER = """
import socket
listener = socket.create_server(("127.0.0.1", 4000))
print("ready", flush=True)
peer = listener.accept()[0]
while True:
    peer.sendall(peer.recv(1))
"""
CLIENT = """
import socket, time
server = socket.create_connection(("127.0.0.1", 4000))
count = 0
while True:
    server.sendall(b"x")
    assert server.recv(1) == b"x"
    count += 1
    print(count, flush=True)
    time.sleep(0.05)
"""


@pytest.mark.case("TCP between two containers over localhost", cases.RESTORED)
@pytest.mark.parametrize("order", ["client last", "client first"])
def test_a_connection_between_containers_goes_on(nodes: Nodes, run_pod: RunPod, order: str) -> None:
    server, client = python("server", SERVER), python("client", CLIENT)

    def spec(name: str, *annotations: tuple[str, str]) -> PodSpec:
        return PodSpec(name=name, containers=(server, COUNTER, client), annotations=annotations)

    name = order.replace(" ", "-")
    source = run_pod(nodes.a, spec(f"{name}-a"))
    source.wait_for_log("client", "\n5\n")
    cases.move(nodes, source, name)
    with kubelet.sandbox(nodes.b, spec(f"{name}-b", *restoring(name))) as target:
        names = ["server", "counter", "client"]
        for container in reversed(names) if order == "client first" else names:
            target.create(container)
            target.start(container)
        goes_on(target, "client")
        held = nodes.b.path(Path("/run/grit/pods") / target.sandbox_id / "loopback.journal")
        assert not held.exists()


def passes_on_loopback(pod: Pod) -> bool:
    """Whether anything passes on the pod's loopback interface."""
    shown = pod.node.run([*netns(pod), "tc", "qdisc", "show", "dev", "lo"]).stdout
    return "blackhole" not in shown


@pytest.mark.case("TCP between two containers, one of which fails to come back", cases.REFUSED)
def test_the_first_failure_lets_loopback_traffic_pass(nodes: Nodes, run_pod: RunPod) -> None:
    def spec(name: str, memory_bytes: int, *annotations: tuple[str, str]) -> PodSpec:
        client = python("client", CLIENT, resources=Resources(memory_bytes=memory_bytes))
        return PodSpec(
            name=name, containers=(python("server", SERVER), client), annotations=annotations
        )

    source = run_pod(nodes.a, spec("failing-a", 0))
    source.wait_for_log("client", "\n5\n")
    cases.move(nodes, source, "failing")
    with kubelet.sandbox(nodes.b, spec("failing-b", 1 << 20, *restoring("failing"))) as target:
        target.create("server")
        target.start("server")
        assert not passes_on_loopback(target)
        target.create("client")
        with pytest.raises(CriError, match="memory limit"):
            target.start("client")
        assert passes_on_loopback(target)


# Runs by grit's own Python on a node: holds the traffic of a network for a moment.
HOLD_FOR_A_MOMENT = """
import sys
from grit_runtime.pod import loopback
loopback._LIMIT_S = 0.2
loopback.hold(*sys.argv[1:])
"""


@pytest.mark.case("TCP between two containers, one of which never comes", cases.RESTORED)
def test_loopback_traffic_passes_again_after_a_time(nodes: Nodes, run_pod: RunPod) -> None:
    pod = run_pod(nodes.b, workload.counter_pod("held"))
    state = Path("/run/grit/pods") / pod.sandbox_id
    network = f"/proc/{pod.pid('counter')}/ns/net"
    nodes.b.run(["mkdir", "-p", str(state)])
    hold = [f"/{rootfs.VENV}/bin/python", "-c", HOLD_FOR_A_MOMENT, str(state), network]
    assert "holding loopback traffic" in nodes.b.run(hold).stderr
    deadline = time.monotonic() + 30
    while nodes.b.path(state / "loopback.journal").exists():
        assert time.monotonic() < deadline
        time.sleep(kubelet.POLL_S)
    assert passes_on_loopback(pod)
