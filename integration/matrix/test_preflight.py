"""What is refused before the pod is frozen, and what CRIU has to be told to dump a pod at all."""

from __future__ import annotations

import os
import signal
from subprocess import PIPE

import pytest

from grit_runtime.proto import cri_pb2
from integration import checkpoints, images, kubelet
from integration.matrix import cases
from integration.pod_spec import (
    ContainerSpec,
    EmptyDir,
    HostPath,
    PodSpec,
    Security,
    VolumeMount,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

SOCKETS, SHARED = "/srv/sockets", "/srv/shared"

TICK = """
n = 0
while True:
    n += 1
    print(n, flush=True)
    time.sleep(0.05)
"""
URING = f"""
import ctypes, time
assert ctypes.CDLL(None).syscall(425, 4, (ctypes.c_char * 120)()) >= 0
{TICK}
"""
CONNECTED = f"""
import socket, time
held = socket.socket(socket.AF_UNIX)
held.connect("/sockets/service")
{TICK}
"""
NAMELESS = f"""
import ctypes, os, time
held = open("/deleted", "w")
assert ctypes.CDLL(None).inotify_add_watch(ctypes.CDLL(None).inotify_init(), b"/deleted", 2) == 1
os.unlink("/deleted")
{TICK}
"""
STOPPED = f"""
import subprocess, time
held = subprocess.Popen(["sh", "-c", "kill -STOP $$"])
{TICK}
"""
COUNTED = f"import time\n{TICK}"
SERVICE = f"""
import socket, time
listener = socket.socket(socket.AF_UNIX)
listener.bind("{SOCKETS}/service")
listener.listen()
print("ready", flush=True)
held = listener.accept()
time.sleep(1000)
"""
TRACE = """
import ctypes, sys, time
assert ctypes.CDLL(None).ptrace(0x4206, int(sys.argv[1]), 0, 0) == 0  # PTRACE_SEIZE
print("ready", flush=True)
time.sleep(1000)
"""

# Makes a file in each directory that it watches, and counts what it is told of them.
WATCH = """
import ctypes, os, struct, time
libc = ctypes.CDLL(None)
directories = ("/var/watched here", "/watched", "/etc", "/volume")
held = libc.inotify_init()
names = {}
for directory in directories:
    os.makedirs(directory, exist_ok=True)
    names[libc.inotify_add_watch(held, directory.encode(), 0x100)] = directory
count = 0
while True:
    count += 1
    for directory in directories:
        open(f"{directory}/file", "w").close()
    told = set()
    while told != set(directories):
        wd, mask, _, length = struct.unpack_from("iIII", os.read(held, 32))
        assert mask == 0x100
        told.add(names[wd])
    for directory in directories:
        os.unlink(f"{directory}/file")
    print(count, flush=True)
    time.sleep(0.05)
"""

# Marks a directory and counts the files that are opened in it; must be privileged.
MARK = """
import ctypes, os, struct, time
libc = ctypes.CDLL(None)
os.makedirs("/marked", exist_ok=True)
group = libc.fanotify_init(0, os.O_RDONLY)
assert libc.fanotify_mark(group, 1, ctypes.c_uint64(0x08000020), -100, b"/marked") == 0
count = 0
while True:
    count += 1
    open("/marked/file", "w").close()
    length, *_, mask, fd, pid = struct.unpack("IBBHQii", os.read(group, 24))
    assert (length, mask, pid) == (24, 0x20, os.getpid())
    os.close(fd)
    print(count, flush=True)
    time.sleep(0.05)
"""


def python(
    name: str, program: str, *mounts: VolumeMount, privileged: bool = False
) -> ContainerSpec:
    return ContainerSpec(
        name=name,
        image=images.PYTHON,
        command=("/usr/bin/python3", "-c", program),
        mounts=mounts,
        security=Security(privileged=privileged),
    )


@pytest.fixture(scope="module")
def refused(nodes: Nodes, fresh_nodes: None) -> Iterator[str]:  # noqa: ARG001 -- emptied before
    """What `grit checkpoint` says of a pod in which nothing can be dumped, and which runs on."""
    shared = VolumeMount("shared", "/shared", propagation=cri_pb2.PROPAGATION_BIDIRECTIONAL)
    slave = VolumeMount("shared", "/below", propagation=cri_pb2.PROPAGATION_HOST_TO_CONTAINER)
    containers = (
        python("uring", URING),
        python("connected", CONNECTED, VolumeMount("sockets", "/sockets")),
        python("traced", COUNTED),
        python("nameless", NAMELESS),
        python("stopped", STOPPED),
        python("shared", COUNTED, shared, privileged=True),
        python("below", COUNTED, slave),
    )
    volumes = (HostPath("sockets", SOCKETS), HostPath("shared", SHARED))
    spec = PodSpec(name="refused", containers=containers, volumes=volumes)
    node = nodes.a
    node.run(["sh", "-ec", f"mkdir -p {SOCKETS} {SHARED}; mount --bind {SHARED} {SHARED}"])
    node.run(["sh", "-ec", f"mount --make-shared {SHARED}; mkdir {SHARED}/late"])
    with node.popen(["python3", "-c", SERVICE], stdout=PIPE) as service:
        assert service.stdout is not None
        assert service.stdout.readline() == "ready\n"
        with kubelet.running(node, spec) as pod:
            node.run(["mount", "-t", "tmpfs", "late", f"{SHARED}/late"])
            trace = ["python3", "-c", TRACE, str(pod.pid("traced"))]
            with node.popen(trace, stdout=PIPE) as tracer:
                assert tracer.stdout is not None
                assert tracer.stdout.readline() == "ready\n"
                done = checkpoints.take(pod, "refused", check=False)
                assert done.returncode != 0
                os.kill(node.command_pid(tracer), signal.SIGKILL)
            assert checkpoints.left_by_checkpoints(node) == []
            for container in containers:
                reached = int(pod.logs(container.name).split()[-1])
                pod.wait_for_log(container.name, f"\n{reached + 3}\n")
            yield done.stderr
        os.kill(node.command_pid(service), signal.SIGKILL)
    node.run(["sh", "-ec", f"umount {SHARED}/late; umount {SHARED}; rm -rf {SOCKETS} {SHARED}"])


@pytest.mark.case("io_uring", cases.REFUSED)
def test_an_io_uring_is_named_before_the_freeze(refused: str) -> None:
    assert "container uring has an io_uring, which CRIU cannot dump; disable it" in refused
    assert "msg=freeze" not in refused


@pytest.mark.case("a unix socket whose other end is a service of the node", cases.REFUSED)
def test_half_of_a_unix_connection_is_named(refused: str) -> None:
    where = f"in container connected has one end of a connection over the unix socket {SOCKETS}"
    assert where in refused


@pytest.mark.case("a debugger attached", cases.REFUSED)
def test_a_debugger_is_named(refused: str) -> None:
    assert "in container traced is traced by process " in refused


@pytest.mark.case("a process stopped by a signal, on cgroup v1", cases.REFUSED)
def test_a_stopped_process_is_named(refused: str) -> None:
    assert "in container stopped is stopped by a signal" in refused


@pytest.mark.case("a watch on a file that is deleted", cases.REFUSED)
def test_a_watch_without_a_name_is_named(refused: str) -> None:
    assert "in container nameless watches inode " in refused


@pytest.mark.case("mountPropagation: Bidirectional", cases.REFUSED)
def test_propagation_to_the_node_is_named(refused: str) -> None:
    assert "container shared: /shared is mounted with mountPropagation Bidirectional" in refused


@pytest.mark.case("mountPropagation: HostToContainer, mounted since", cases.REFUSED)
def test_what_the_node_has_mounted_since_is_named(refused: str) -> None:
    assert "container below: /below/late was mounted by the node" in refused


@pytest.mark.case("inotify watches everywhere, a fanotify mark", cases.RESTORED)
def test_a_watch_goes_on_watching(nodes: Nodes, run_pod: RunPod) -> None:
    def spec(name: str, *annotations: tuple[str, str]) -> PodSpec:
        return PodSpec(
            name=name,
            containers=(
                python("watcher", WATCH, VolumeMount("volume", "/volume")),
                python("marker", MARK, privileged=True),
            ),
            volumes=(EmptyDir("volume"),),
            annotations=annotations,
        )

    source = run_pod(nodes.a, spec("watching-a"))
    for name in ("watcher", "marker"):
        source.wait_for_log(name, "\n5\n")
    cases.move(nodes, source, "watching", "--capture", "emptydir:volume")
    target = run_pod(nodes.b, spec("watching-b", ("grit.dev/restore-name", "watching")))
    for name in ("watcher", "marker"):
        reached = int(target.logs(name).split()[-1])
        target.wait_for_log(name, f"\n{reached + 10}\n")
