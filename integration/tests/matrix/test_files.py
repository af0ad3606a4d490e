"""What a process has open or mapped by name, where the new pod has it otherwise or not at all."""

from __future__ import annotations

import os

import pytest

from integration.node import images
from integration.pods import checkpoints
from integration.pods.pod_spec import ContainerSpec, EmptyDir, HostPath, PodSpec, VolumeMount
from integration.tests.matrix import cases, single

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.node.node import Node
    from integration.pods.kubelet import Pod
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

CONTAINER = "holder"

# Counts, with the file held open.
HOLD = """
import time
held = open("/data/file")
n = 0
while True:
    n += 1
    print(n, flush=True)
    time.sleep(0.05)
"""


# Holds what kubelet and containerd write for each pod; says what it reads there, when told to.
# One token it opened before kubelet replaced all of them, and removed what it had open.
HOLD_OWN = """
import mmap, os, time
token = "/var/run/secrets/kubernetes.io/serviceaccount/token"
old = open(token)
print("old", flush=True)
while os.path.exists(os.path.realpath(os.readlink(f"/proc/self/fd/{old.fileno()}"))):
    time.sleep(0.05)
os.chdir("/var/run/secrets/kubernetes.io/serviceaccount/..data")
held = [old, open("token"), open("/etc/hosts"), open("/etc/hostname")]
mapped = mmap.mmap(held[1].fileno(), 12, prot=mmap.PROT_READ)
print("holding", flush=True)
while not os.path.exists("/tmp/go"):
    time.sleep(0.05)
for file in held:
    print(file.read(), end="", flush=True)
print(mapped[:].decode(), os.path.exists("token"), "all", flush=True)
time.sleep(1000)
"""

# A timer that nobody reads until told to.
HOLD_TIMERS = """
import os, select, time
print("start", flush=True)
periodic, absolute, once = (os.timerfd_create(time.CLOCK_MONOTONIC) for _ in range(3))
os.timerfd_settime(periodic, initial=0.01, interval=0.2)
at = time.monotonic() + 0.01
os.timerfd_settime(absolute, flags=os.TFD_TIMER_ABSTIME, initial=at, interval=0.2)
os.timerfd_settime(once, initial=0.01)
for fd in (periodic, absolute, once):
    select.select([fd], [], [])
print("expired", flush=True)
while not os.path.exists("/tmp/go"):
    time.sleep(0.05)
def reads(fd):
    ready, _, _ = select.select([fd], [], [], 2)
    return bool(ready) and len(os.read(fd, 8))
print([reads(fd) for fd in (periodic, absolute, once) for _ in range(3)], "all", flush=True)
time.sleep(1000)
"""

# Holds files whose name was deleted and that have another, which is the same file, and a large one
# that has none.
HOLD_LINKED = """
import mmap, os, sys, time
def linked(directory):
    with open(directory + "/deleted", "wb+") as file:
        file.write(b"%10d" % 0)
        os.link(directory + "/deleted", directory + "/other")
        os.unlink(directory + "/deleted")
        kept = os.fdopen(os.dup(file.fileno()), "wb+", buffering=0)
        return kept, open(directory + "/other", "rb")
os.mkdir("/tmp/below")
big = open("/tmp/big", "wb+")
os.unlink("/tmp/big")
for part in range(65):
    big.write(b"%8d" % part * (1 << 17))
big.flush()
held = [linked(directory) for directory in sys.argv[1:]]
mapped = mmap.mmap(held[0][0].fileno(), 10)
os.closerange(held[0][0].fileno(), held[0][0].fileno() + 1)
n = 0
while True:
    for file, other in held:
        other.seek(0)
        assert other.read() == b"%10d" % n
    assert os.pread(big.fileno(), 8, 64 << 20) == b"%8d" % 64
    n += 1
    mapped[:] = b"%10d" % n
    for file, other in held[1:]:
        file.seek(0)
        file.write(b"%10d" % n)
    print(n, flush=True)
    time.sleep(0.05)
"""


def holder(*, name: str = "holder", code: str = HOLD, **asked: str) -> PodSpec:
    """A pod that runs *code* with /srv/files of its node at /data; *asked* are annotations."""
    container = ContainerSpec(
        name=CONTAINER,
        image=images.PYTHON,
        command=("/usr/bin/python3", "-c", code),
        mounts=(VolumeMount("data", "/data"),),
    )
    return PodSpec(
        name=name,
        containers=(container,),
        volumes=(HostPath("data", "/srv/files"),),
        annotations=tuple((f"grit.dev/{key.replace('_', '-')}", asked[key]) for key in asked),
    )


def put(node: Node, content: str) -> None:
    node.run(["sh", "-ec", f'mkdir -p /srv/files; printf "%s" "{content}" >/srv/files/file'])


@pytest.mark.case("an open file of a volume, or a program, missing or another", cases.REFUSED)
def test_a_file_that_is_not_what_it_was_is_named(nodes: Nodes, run_pod: RunPod) -> None:
    put(nodes.a, "12345")
    source = run_pod(nodes.a, holder())
    source.wait_for_log(CONTAINER, "\n3\n")
    cases.move(nodes, source, "holder")
    restored = holder(restore_name="holder")

    nodes.b.run(["mkdir", "-p", "/srv/files"])
    missing = cases.refusal(nodes, restored)
    assert "file /data/file is missing, was 5 bytes long; the volume at /data is not" in missing
    for content in ("1234", "123456"):
        put(nodes.b, content)
        wrong = f"file /data/file is {len(content)} bytes long, was 5; the volume at /data is not"
        assert wrong in cases.refusal(nodes, restored)

    put(nodes.b, "abcde")
    program = nodes.b.program_of_image()
    size_bytes = program.stat().st_size
    os.truncate(program, size_bytes + 1)
    try:
        refused = cases.refusal(nodes, restored)
    finally:
        os.truncate(program, size_bytes)
    wrong = f"file /usr/bin/{program.name} is {size_bytes + 1} bytes long, was {size_bytes}; "
    assert wrong in refused
    assert f"expected the file of the checkpoint's image {images.PYTHON}" in refused
    run_pod(nodes.b, restored).wait_for_log(CONTAINER, "\n9\n")


def moved(nodes: Nodes, run_pod: RunPod, source: Pod, *, name: str, code: str) -> Pod:
    """The pod on node B, where it is called *name* and has been told to go on."""
    cases.move(nodes, source, source.spec.name)
    target = run_pod(nodes.b, holder(name=name, code=code, restore_name=source.spec.name))
    target.exec_sync(CONTAINER, ["/bin/sh", "-c", "echo >/tmp/go"])
    return target


@pytest.mark.case("open token, hosts and hostname, which are the new pod's own", cases.RESTORED)
def test_what_is_written_for_each_pod_is_the_new_pods(nodes: Nodes, run_pod: RunPod) -> None:
    put(nodes.a, "")
    put(nodes.b, "")
    source = run_pod(nodes.a, holder(name="short", code=HOLD_OWN))
    source.wait_for_log(CONTAINER, "old\n")
    source.renew_token()
    source.wait_for_log(CONTAINER, "holding\n")
    target = moved(nodes, run_pod, source, name="longer-name", code=HOLD_OWN)
    own = target.wait_for_log(CONTAINER, " all\n")
    assert f"token of pod {source.spec.uid}" in own  # removed before, so it went along
    assert f"token of pod {target.spec.uid}" in own
    assert "\tlonger-name\nlonger-name\ntoken of pod True all\n" in own


@pytest.mark.case("timers that have expired and were not read", cases.RESTORED)
def test_a_timer_that_nobody_had_read_goes_on(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, holder(name="timers", code=HOLD_TIMERS))
    source.wait_for_log(CONTAINER, "expired\n")
    target = moved(nodes, run_pod, source, name="timers", code=HOLD_TIMERS)
    said = target.wait_for_log(CONTAINER, " all\n")
    assert "[8, 8, 8, 8, 8, 8, 8, False, False] all\n" in said


def linked(*directories: str, **asked: str) -> PodSpec:
    """A pod that writes to deleted files with another name left, in each of *directories*."""
    container = ContainerSpec(
        name=CONTAINER,
        image=images.PYTHON,
        command=("/usr/bin/python3", "-c", HOLD_LINKED, *directories),
        mounts=(VolumeMount("data", "/data"), VolumeMount("scratch", "/lib/scratch")),
    )
    return PodSpec(
        name="linked",
        containers=(container,),
        volumes=(HostPath("data", "/srv/files"), EmptyDir("scratch")),
        annotations=tuple((f"grit.dev/{key.replace('_', '-')}", asked[key]) for key in asked),
    )


def remap_links(pod: Pod) -> str:
    """The names that CRIU makes for a dump, in any place that the pod writes to."""
    script = "find /tmp /data /lib/scratch -name 'link_remap*'"
    return pod.exec_sync(CONTAINER, ["/bin/sh", "-c", script]).stdout.decode()


@pytest.mark.case("a deleted file that is large, or has another name left", cases.RESTORED)
def test_a_file_keeps_its_other_name(nodes: Nodes, run_pod: RunPod) -> None:
    places = ("/tmp", "/tmp/below", "/lib/scratch")
    source = run_pod(nodes.a, linked(*places, capture="emptydir:scratch"))
    source.wait_for_log(CONTAINER, "\n3\n")
    checkpoints.take(source, "linked-on")
    assert remap_links(source) == ""
    count = int(source.logs(CONTAINER).split()[-1])
    source.wait_for_log(CONTAINER, f"\n{count + 5}\n")
    cases.move(nodes, source, "linked")
    target = run_pod(nodes.b, linked(*places, restore_name="linked"))
    count = int(target.logs(CONTAINER).split()[-1])
    target.wait_for_log(CONTAINER, f"\n{count + 5}\n")
    assert remap_links(target) == ""


@pytest.mark.case("a deleted file with another name, on a hostPath", cases.REFUSED)
def test_a_file_whose_other_name_stays_behind_is_named(nodes: Nodes, run_pod: RunPod) -> None:
    put(nodes.a, "")
    source = run_pod(nodes.a, linked("/tmp", "/data"))
    source.wait_for_log(CONTAINER, "\n3\n")
    refused = checkpoints.take(source, "stays", check=False)
    assert "file /data/deleted was deleted while it is open, but has another" in refused.stderr
    assert remap_links(source) == ""
    assert checkpoints.left_by_checkpoints(nodes.a) == []
    count = int(source.logs(CONTAINER).split()[-1])
    source.wait_for_log(CONTAINER, f"\n{count + 5}\n")


# Leaves a socket file behind that nothing is bound to any more, and has one that something is.
STALE_SOCKET = """
stale = socket.socket(socket.AF_UNIX)
live = socket.socket(socket.AF_UNIX)
for one, name in ((stale, "/tmp/stale"), (live, "/tmp/live")):
    one.bind(name)
    os.chmod(name, 0o640)
    os.chown(name, 7, 8)
live.listen()
stale.close()

def probe():
    client = socket.socket(socket.AF_UNIX)
    client.connect("/tmp/live")
    live.accept()
    try:
        socket.socket(socket.AF_UNIX).connect("/tmp/stale")
    except ConnectionRefusedError:
        states = [os.stat(name) for name in ("/tmp/stale", "/tmp/live")]
        return [(oct(state.st_mode), state.st_uid, state.st_gid) for state in states]

check(probe)
"""


@pytest.mark.case("unix sockets by name, one that nothing is bound to any more", cases.RESTORED)
def test_socket_files_come_back(nodes: Nodes, run_pod: RunPod) -> None:
    assert "RESULT SAME" in single.moved(nodes, run_pod, single.pod("stale", STALE_SOCKET))


# As supervisord, haproxy and a JVM's attach listener do it.
RENAMED_SOCKETS = """
os.mkdir("/tmp/other")

def bound(name):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name)
    listener.listen()
    os.chmod(name, 0o640)
    os.chown(name, 5, 6)
    return listener

renamed = bound("/tmp/renamed.new")
os.rename("/tmp/renamed.new", "/tmp/renamed")
moved = bound("/dev/shm/moved.new")
os.mkdir("/dev/shm/other")
os.rename("/dev/shm/moved.new", "/dev/shm/other/moved")
linked = bound("/tmp/linked.new")
os.link("/tmp/linked.new", "/tmp/linked")
os.unlink("/tmp/linked.new")
plain = bound("/plain")
twice = bound("/tmp/twice.new")
os.link("/tmp/twice.new", "/tmp/twice")

def probe():
    found = []
    for listener, name in (
        (renamed, "/tmp/renamed"), (moved, "/dev/shm/other/moved"), (linked, "/tmp/linked"),
        (twice, "/tmp/twice"), (twice, "/tmp/twice.new"), (plain, "/plain"),
    ):
        client = socket.socket(socket.AF_UNIX)
        client.connect(name)
        listener.accept()
        state = os.stat(name)
        found.append((listener.getsockname(), state.st_mode, state.st_uid, state.st_gid))
    return found, sorted(os.listdir("/tmp")), [os.listdir("/dev/shm/other")]

check(probe)
"""


@pytest.mark.case("unix sockets that were renamed or linked, two moves", cases.RESTORED)
def test_renamed_sockets_keep_their_names(nodes: Nodes, run_pod: RunPod) -> None:
    first = single.started(nodes, run_pod, single.pod("renamed", RENAMED_SOCKETS))
    cases.move(nodes, first, "renamed")
    asking = (("grit.dev/restore-name", "renamed"),)
    second = run_pod(nodes.b, single.again(first.spec, asking))
    checkpoints.take(second, "renamed2", "--after", "stopped", "--pod-is-going")
    checkpoints.carry(nodes.b, nodes.a, "renamed2")
    asking = (("grit.dev/restore-name", "renamed2"),)
    said = single.go_on(run_pod(nodes.a, single.again(first.spec, asking)))
    assert "RESULT SAME" in said, said


DISPLACED_SOCKET = """
listeners = [socket.socket(socket.AF_UNIX) for _ in range(2)]
for number, listener in enumerate(listeners):
    listener.bind("/tmp/new")
    if not number:
        os.rename("/tmp/new", "/tmp/socket")
wait()
"""


@pytest.mark.case("a unix socket whose first name another has now", cases.REFUSED)
def test_a_socket_whose_first_name_is_taken_is_named(nodes: Nodes, run_pod: RunPod) -> None:
    source = single.started(nodes, run_pod, single.pod("displaced", DISPLACED_SOCKET))
    done = checkpoints.take(source, "displaced", check=False)
    assert "has the unix socket /tmp/socket, which was bound as /tmp/new and then" in done.stderr
    assert "msg=freeze" not in done.stderr
