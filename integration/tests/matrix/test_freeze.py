"""Pods that are caught, by the freeze, in what cannot be dumped while it lasts."""

from __future__ import annotations

import os
import re
import subprocess
import time

import pytest

from integration.pods import checkpoints, workload
from integration.pods.pod_spec import EmptyDir, Security, VolumeMount
from integration.tests.matrix import cases, single

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.pods.kubelet import Pod
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

# As dash, Python's subprocess, Go and Java do it.
SHORT_VFORKS = """
print("ready", flush=True)
while True:
    subprocess.run(["/bin/true"])
"""

# The child ends after 4 s without a program, as one whose exec waits for a slow disk; then again.
LONG_VFORKS = """
CLONE_VFORK_AND_SIGCHLD = 0x4011
function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda _: libc.poll(None, 0, 4000))
stack = ctypes.create_string_buffer(1 << 20)
top = ctypes.c_void_p(ctypes.addressof(stack) + (1 << 20) - 64)
def start():
    while True:
        libc.clone(function, top, CLONE_VFORK_AND_SIGCHLD, None)
threading.Thread(target=start, daemon=True).start()
time.sleep(0.5)
print("ready", flush=True)
time.sleep(1000)
"""

# Waits for a file system in user space that answers nothing but the kernel's first question.
HUNG = """
os.mknod("/fuse", 0o20600, os.makedev(10, 229))
fd = os.open("/fuse", os.O_RDWR)
options = f"fd={fd},rootmode=40000,user_id=0,group_id=0".encode()
os.mkdir("/hung")
assert libc.mount(b"none", b"/hung", b"fuse", 0, options) == 0, ctypes.get_errno()
request = os.read(fd, 1 << 20)
unique = struct.unpack_from("=IIQ", request)[2]
os.write(fd, struct.pack("=IiQ4I2HI", 56, 0, unique, 7, 12, 0, 0, 1, 1, 4096) + bytes(16))
if os.fork() == 0:
    os.close(fd)  # the file system ends with the process that keeps it
    os.stat("/hung/file")
os.read(fd, 1 << 20)
print("ready", flush=True)
time.sleep(1000)
"""

# Reads what its watch tells it 0.2 s late, again and again, and says how often it had to wait long.
LATE_READER = """
os.mkdir("/watched")
held = libc.inotify_init()
assert libc.inotify_add_watch(held, b"/watched", 0x100) == 1
print("ready", flush=True)
n = 0
while True:
    n += 1
    open(f"/watched/{n % 2}", "w").close()
    time.sleep(0.2)
    assert select.select([held], [], [], 5)[0], "lost"
    os.read(held, 4096)
    os.unlink(f"/watched/{n % 2}")
    print(n, flush=True)
    time.sleep(0.3)
"""

# Accepts 0.2 s late what was connected and used at once, again and again.
LATE_ACCEPTER = """
listener = socket.socket(socket.AF_UNIX)
listener.bind("/socket")
listener.listen()
print("ready", flush=True)
n = 0
while True:
    n += 1
    client = socket.socket(socket.AF_UNIX)
    client.connect("/socket")
    client.send(b"%d" % n)
    time.sleep(0.2)
    server, _ = listener.accept()
    assert server.recv(20) == b"%d" % n
    print(n, flush=True)
    time.sleep(0.3)
"""

NO_ACCEPTER = """
listener = socket.socket(socket.AF_UNIX)
listener.bind("/socket")
listener.listen()
client = socket.socket(socket.AF_UNIX)
client.connect("/socket")
client.send(b"x")
corked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
corked.setsockopt(socket.IPPROTO_UDP, 1, 1)
print("ready", flush=True)
time.sleep(1000)
"""

NO_READER = """
assert libc.inotify_add_watch(libc.inotify_init(), b"/tmp", 0x100) == 1
open("/tmp/file", "w").close()
print("ready", flush=True)
time.sleep(1000)
"""


# Makes and removes files, directories, processes and, where it may, cgroups, as fast as it can.
BUSY = """
def churn(top):
    while True:
        os.makedirs(f"{top}/one/two")
        for n in range(50):
            open(f"{top}/one/two/{n}", "w").close()
        for n in range(50):
            os.unlink(f"{top}/one/two/{n}")
        os.rmdir(f"{top}/one/two")
        os.rmdir(f"{top}/one")

def processes():
    while True:
        if os.fork() == 0:
            held = socket.socket(), socket.socketpair(), open("/tmp/held", "w")
            os._exit(0)
        os.wait()

def cgroups(top):
    while True:
        os.mkdir(f"{top}/below")
        os.rmdir(f"{top}/below")

for place in ("/tmp", "/volume"):
    if os.fork() == 0:
        churn(place)
if os.fork() == 0:
    processes()
if os.fork() == 0:
    cgroups("/sys/fs/cgroup/freezer")
print("ready", flush=True)
time.sleep(1000)
"""


def running(nodes: Nodes, run_pod: RunPod, name: str, program: str) -> Pod:
    return single.started(nodes, run_pod, single.pod(name, program))


@pytest.mark.case("programs started all the time, by vfork", cases.RESTORED)
def test_a_vfork_is_waited_for(nodes: Nodes, run_pod: RunPod) -> None:
    source = running(nodes, run_pod, "vforks", SHORT_VFORKS)
    for number in range(12):
        checkpoints.take(source, f"vforks-{number}")
    cases.move(nodes, source, "vforks")
    asked = single.pod("vforks-b", SHORT_VFORKS, (("grit.dev/restore-name", "vforks"),))
    again = run_pod(nodes.b, asked)
    checkpoints.take(again, "vforks-again")


@pytest.mark.case("a vfork that does not end", cases.REFUSED)
def test_a_long_vfork_is_named(nodes: Nodes, run_pod: RunPod) -> None:
    source = running(nodes, run_pod, "long", LONG_VFORKS)
    done = checkpoints.take(source, "long", check=False)
    where = f"process {source.pid(single.CONTAINER)} in container {single.CONTAINER}"
    assert f"{where} cannot be stopped for the dump: it waits for its vfork" in done.stderr
    assert checkpoints.left_by_checkpoints(nodes.a) == []


@pytest.mark.case("a process that hangs in a file system", cases.REFUSED)
def test_a_process_that_does_not_freeze_is_named(nodes: Nodes, run_pod: RunPod) -> None:
    spec = single.pod("hung", HUNG, security=Security(privileged=True))
    source = single.started(nodes, run_pod, spec)
    done = checkpoints.take(source, "hung", check=False)
    hung = r"process \d+ in container main cannot be frozen: it waits in the kernel"
    assert re.search(hung, done.stderr)
    assert checkpoints.left_by_checkpoints(nodes.a) == []


@pytest.mark.case("watches read late, unix connections accepted late", cases.RESTORED)
@pytest.mark.parametrize(
    ("name", "program"), [("watch", LATE_READER), ("connection", LATE_ACCEPTER)]
)
def test_what_comes_late_is_waited_for(
    nodes: Nodes, run_pod: RunPod, name: str, program: str
) -> None:
    source = running(nodes, run_pod, name, program)
    for number in range(3):
        assert "WatchEventsLost" not in checkpoints.take(source, f"{name}-{number}").stderr
    cases.move(nodes, source, name)
    asking = (("grit.dev/restore-name", name),)
    target = run_pod(nodes.b, single.pod(f"{name}-b", program, asking))
    reached = int(target.logs(single.CONTAINER).split()[-1])
    target.wait_for_log(single.CONTAINER, f"\n{reached + 3}\n")


@pytest.mark.case("an event of a watch that nobody reads", "a warning")
def test_an_event_that_nobody_reads_is_told(nodes: Nodes, run_pod: RunPod) -> None:
    source = running(nodes, run_pod, "unread", NO_READER)
    refused = checkpoints.take(source, "unread", "--strict", check=False)
    assert refused.returncode != 0
    assert "has not read all that inotify or fanotify has told it" in refused.stderr
    assert checkpoints.left_by_checkpoints(nodes.a) == []
    checkpoints.take(source, "unread")
    (warning,) = checkpoints.read(checkpoints.directory(nodes.a, "unread")).warnings
    pid = source.pid(single.CONTAINER)
    assert (warning.kind, warning.pid, warning.container) == ("WatchEventsLost", pid, "main")


@pytest.mark.case("files, processes and cgroups that come and go all the time", cases.RESTORED)
def test_what_vanishes_meanwhile_is_no_matter(nodes: Nodes, run_pod: RunPod) -> None:
    spec = single.pod(
        "busy",
        BUSY,
        (("grit.dev/capture", "emptydir:volume"),),
        security=Security(privileged=True),
        volumes=(EmptyDir("volume"),),
        mounts=(VolumeMount("volume", "/volume"),),
    )
    source = single.started(nodes, run_pod, spec)
    for number in range(10):
        checkpoints.take(source, f"busy-{number}")
    cases.move(nodes, source, "busy")
    asking = (*spec.annotations, ("grit.dev/restore-name", "busy"))
    target = run_pod(nodes.b, single.again(spec, asking))
    checkpoints.take(target, "busy-again")


@pytest.mark.case("a unix connection that nobody accepts, corked datagrams", cases.REFUSED)
def test_what_nobody_takes_is_named_without_a_freeze(nodes: Nodes, run_pod: RunPod) -> None:
    source = running(nodes, run_pod, "untaken", NO_ACCEPTER)
    done = checkpoints.take(source, "untaken", check=False)
    where = f"process {source.pid(single.CONTAINER)} in container {single.CONTAINER}"
    assert f"{where} has not accepted a connection of the unix socket /socket that" in done.stderr
    assert f"{where} holds datagrams back (UDP_CORK)" in done.stderr
    assert checkpoints.left_by_checkpoints(nodes.a) == []


@pytest.mark.parametrize("after_ms", range(200, 440, 5 if "GRIT_LONG" in os.environ else 40))
def test_a_container_that_is_killed_meanwhile_is_what_an_error_is_about(
    nodes: Nodes, run_pod: RunPod, after_ms: int
) -> None:
    pod = run_pod(nodes.a, workload.counter_pod(f"killed-{after_ms}"))
    workload.wait_for_count(pod, 2)
    pid = pod.pid("counter")
    argv = ["grit", "checkpoint", f"default/{pod.spec.name}", "--name", f"killed-{after_ms}"]
    with nodes.a.popen(argv, stderr=subprocess.PIPE) as taken:
        time.sleep(after_ms / 1000)  # at any moment of it
        nodes.a.run(["kill", "-KILL", str(pid)])
        said = taken.communicate(timeout=60)[1]
    assert taken.returncode == 0 or "(PodNotReady)" in said, said
