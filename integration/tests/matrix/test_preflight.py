"""What is refused before the pod is frozen, and what CRIU has to be told to dump a pod at all."""

from __future__ import annotations

import fcntl
import os
import signal
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE

import pytest

from grit_runtime.proto import cri_pb2
from integration.node import images
from integration.pods import checkpoints, kubelet
from integration.pods.pod_spec import (
    ContainerSpec,
    EmptyDir,
    HostPath,
    PodSpec,
    Security,
    VolumeMount,
)
from integration.pods.workload import SHELL_COUNTER, shell_pod
from integration.tests.matrix import cases

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.tests.conftest import Nodes, RunPod

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
# Holds one of each that CRIU has no image for; must be privileged.
STRANGE = f"""
import ctypes, mmap, os, socket, struct, time
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    fd = libc.syscall(number, *arguments)
    assert fd >= 0, (number, os.strerror(ctypes.get_errno()))
    return fd
secret = call(447, 0)
os.ftruncate(secret, 4096)
mapped = mmap.mmap(secret, 4096)
os.close(secret)
queue = call(240, b"queue", os.O_CREAT | os.O_RDWR, 0o600, None)
attributes = (ctypes.c_char * 128)()
struct.pack_into("IIQ", attributes, 0, 1, 128, 0)
call(298, attributes, 0, -1, -1, 0)
call(323, 0)
program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0x7FFF0000))
filters = struct.pack("HxxxxxxQ", 1, ctypes.addressof(program))
call(317, 1, 8, filters)
os.pipe2(os.O_DIRECT)
pipes = [os.pipe() for _ in range(1100)]
mptcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
vsock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
os.mkfifo("/tmp/fifo")
os.open("/tmp/fifo", os.O_PATH)
if os.fork() == 0:
    os.unshare(os.CLONE_NEWUSER)
    time.sleep(1000)
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
        python("strange", STRANGE, privileged=True),
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
    assert "container uring has an io_uring, which CRIU cannot dump; deny it" in refused
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


@pytest.mark.case(
    "secret memory, message queue, perf event, userfaultfd, seccomp listener, packet pipe, MPTCP, "
    "vsock, O_PATH of a fifo, nested user namespace, 1,100 pipes",
    cases.REFUSED,
)
def test_what_criu_has_no_image_for_is_named(refused: str) -> None:
    for reason in (
        "has secret memory (memfd_secret)",
        "has /queue open, which is on no mount of its container",
        "has a descriptor of perf_event",
        "has a descriptor of userfaultfd",
        "has a descriptor of seccomp notify",
        "has a pipe in packet mode (O_DIRECT)",
        "has an MPTCP socket, which CRIU cannot dump; have it use TCP (GODEBUG=multipathtcp=0",
        "has a socket of AF_VSOCK",
        "has /tmp/fifo, a fifo or a socket, open with O_PATH",
        "is in a user namespace of its own",
    ):
        assert f"in container strange {reason}" in refused
    assert "has 1101 pipes to read from, of 1101 in the container, and CRIU dumps 1024" in refused


@pytest.mark.case("mountPropagation: Bidirectional", cases.REFUSED)
def test_propagation_to_the_node_is_named(refused: str) -> None:
    assert "container shared: /shared is mounted with mountPropagation Bidirectional" in refused


@pytest.mark.case("mountPropagation: HostToContainer, mounted since", cases.REFUSED)
def test_what_the_node_has_mounted_since_is_named(refused: str) -> None:
    assert "container below: /below/late was mounted by the node" in refused


@pytest.mark.case("a second checkpoint at once", cases.REFUSED)
def test_a_checkpoint_under_way_is_named(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, PodSpec(name="twice", containers=(python("main", COUNTED),)))
    journal = nodes.a.path(Path(checkpoints.journal(source)))
    journal.parent.mkdir(parents=True)
    with journal.open("x") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = checkpoints.take(source, "twice", check=False)
    assert "pod default/twice: another grit is checkpointing it" in done.stderr
    checkpoints.take(source, "twice")


@pytest.mark.case("hostUsers: false", cases.REFUSED)
def test_a_pod_with_users_of_its_own_is_named_from_and_to(nodes: Nodes, run_pod: RunPod) -> None:
    reason = "its pod has a user namespace (hostUsers: false), and CRIU would make another one"
    pod = run_pod(nodes.a, replace(shell_pod("users-of-its-own", SHELL_COUNTER), host_users=False))
    pod.wait_for_log("main", "count 1\n")
    told = checkpoints.take(pod, "refused", check=False).stderr
    assert f"container main: {reason}" in told
    assert "msg=freeze" not in told
    checkpoints.take(run_pod(nodes.a, shell_pod("users", SHELL_COUNTER)), "users")
    checkpoints.carry(nodes.a, nodes.b, "users")
    restoring = (("grit.dev/restore-name", "users"),)
    spec = replace(shell_pod("users", SHELL_COUNTER), host_users=False, annotations=restoring)
    assert reason in cases.refusal(nodes, spec)


@pytest.mark.case("a fifo that nobody has written to", "a warning")
def test_a_fifo_that_nobody_has_written_to_is_told(nodes: Nodes, run_pod: RunPod) -> None:
    held = 'import os, time\nos.mkfifo("/f")\nfd = os.open("/f", os.O_RDONLY | os.O_NONBLOCK)\n'
    source = run_pod(nodes.a, PodSpec(name="fifo", containers=(python("main", held + TICK),)))
    source.wait_for_log("main", "\n3\n")
    checkpoints.take(source, "fifo")
    (warning,) = checkpoints.read(checkpoints.directory(nodes.a, "fifo")).warnings
    assert (warning.kind, warning.pid) == ("FifoHangup", source.pid("main"))
    assert "will be told that /f has lost its writer (POLLHUP)" in warning.text


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
