"""What a process can hold besides memory and files."""

from __future__ import annotations

import pytest

from integration.node import images
from integration.pods.pod_spec import ContainerSpec, PodSpec
from integration.tests.matrix import cases

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

CONTAINER = "holder"

# Counts for as long as all that it holds is as it was; what is not, it names.
HOLD = """
import fcntl, mmap, os, select, signal, socket, threading, time

def a_pair():
    one, other = socket.socketpair()
    def check(n):
        one.sendall(b"%d" % n)
        assert other.recv(20) == b"%d" % n
    return check

def a_unix_socket():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("/tmp/socket")
    listener.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect("/tmp/socket")
    server, _ = listener.accept()
    def check(n):
        client.sendall(b"%d" % n)
        assert server.recv(20) == b"%d" % n
        late = socket.socket(socket.AF_UNIX)
        late.connect("/tmp/socket")
        late.close()
        listener.accept()[0].close()
    return check

def a_lock():
    held = open("/tmp/lock", "w")
    fcntl.flock(held, fcntl.LOCK_EX)
    def check(n, held=held):
        with open("/tmp/lock") as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
        raise AssertionError("it is free")
    return check

def a_record_lock():
    held = open("/tmp/record", "w+")
    fcntl.lockf(held, fcntl.LOCK_EX, 10)
    def check(n, held=held):
        child = os.fork()
        if child == 0:
            try:
                fcntl.lockf(open("/tmp/record", "w"), fcntl.LOCK_EX | fcntl.LOCK_NB, 10)
                os._exit(1)
            except BlockingIOError:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    return check

def written(file):
    def check(n):
        file.seek(0)
        assert n == 1 or file.read(10) == b"%10d" % (n - 1)
        file.seek(0)
        file.write(b"%10d" % n)
        file.flush()
    return check

def a_deleted_file():
    file = open("/tmp/deleted", "w+b")
    os.unlink("/tmp/deleted")
    return written(file)

def a_memfd():
    return written(os.fdopen(os.memfd_create("held"), "w+b"))

def shared_memory():
    return written(mmap.mmap(-1, 4096))

def a_timer():
    fd = os.timerfd_create(time.CLOCK_MONOTONIC)
    os.timerfd_settime(fd, initial=3600, interval=1)
    left = [3600]
    poll = select.epoll()
    poll.register(fd, select.EPOLLIN)
    def check(n):
        assert poll.poll(0) == []
        now, interval = os.timerfd_gettime(fd)
        assert 3500 < now <= left[0] and interval == 1
        left[0] = now
    return check

def an_interval_timer():
    fired = []
    signal.signal(signal.SIGALRM, lambda *_: fired.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    def check(n):
        fired.clear()
        deadline = time.monotonic() + 5
        while not fired:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    return check

def an_event_counter():
    fd = os.eventfd(0)
    def check(n):
        os.eventfd_write(fd, n)
        assert os.eventfd_read(fd) == n
    return check

def threads():
    counts = [0] * 8
    def count(index):
        while True:
            counts[index] += 1
            time.sleep(0.01)
    for index in range(8):
        threading.Thread(target=count, args=(index,), daemon=True).start()
    def check(n):
        before = list(counts)
        deadline = time.monotonic() + 5
        while any(now <= then for now, then in zip(counts, before)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    return check

def a_tree():
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            n = 0
            while True:
                n += 1
                os.write(write, b"%10d" % n)
        while True:
            time.sleep(1000)
    os.close(write)
    def check(n):
        assert int(os.read(read, 10)) == n
    return check

def a_zombie():
    child = os.fork()
    if child == 0:
        os._exit(7)
    def check(n):
        with open(f"/proc/{child}/stat") as file:
            assert file.read().split(") ")[1][0] in "Z" or n < 5
    return check

kinds = [a_tree, a_zombie, a_pair, a_unix_socket, a_lock, a_record_lock, a_deleted_file, a_memfd]
kinds += [shared_memory, a_timer, an_interval_timer, an_event_counter, threads]
checks = {kind.__name__: kind() for kind in kinds}
n = 0
while True:
    n += 1
    for name, check in checks.items():
        try:
            check(n)
        except Exception as error:
            print("broken:", name, repr(error), flush=True)
            time.sleep(1000)
    print(n, flush=True)
"""


@pytest.mark.case(
    "unix sockets, locks, deleted file, memfd, shared memory, timers, threads, tree, zombie",
    cases.RESTORED,
)
def test_all_that_a_process_holds_is_as_it_was(nodes: Nodes, run_pod: RunPod) -> None:
    def spec(**asked: str) -> PodSpec:
        container = ContainerSpec(
            name=CONTAINER,
            image=images.PYTHON,
            command=("/usr/bin/python3", "-W", "ignore", "-c", HOLD),
        )
        annotations = tuple((f"grit.dev/{key.replace('_', '-')}", asked[key]) for key in asked)
        return PodSpec(name="holder", containers=(container,), annotations=annotations)

    source = run_pod(nodes.a, spec())
    source.wait_for_log(CONTAINER, "\n10\n")
    cases.move(nodes, source, "holder")
    target = run_pod(nodes.b, spec(restore_name="holder"))
    said = target.logs(CONTAINER).split("\n")
    reached = max(int(line) for line in said if line.isdigit())
    counted = target.wait_for_log(CONTAINER, f"\n{reached + 20}\n").splitlines()
    assert counted == [str(number) for number in range(1, len(counted) + 1)]
