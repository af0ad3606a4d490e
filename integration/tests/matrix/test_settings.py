"""What the kernel keeps of a process and no image of CRIU holds, or CRIU leaves at its default."""

from __future__ import annotations

import pytest

from integration.pods import checkpoints
from integration.pods.pod_spec import Security
from integration.tests.matrix import cases, single

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _pytest.mark.structures import ParameterSet

    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

SCHEDULING = """
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
os.nice(7)
os.sched_setaffinity(0, {1})
libc.syscall(251, 1, 0, (2 << 13) | 6)

def idle():
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    os.sched_setaffinity(0, {0})
    while True:
        time.sleep(1)

thread = threading.Thread(target=idle, daemon=True)
thread.start()
time.sleep(0.2)

def probe():
    tids = (0, thread.native_id)
    return [
        (os.sched_getscheduler(tid), os.getpriority(0, tid), os.sched_getaffinity(tid),
         libc.syscall(252, 1, tid))
        for tid in tids
    ]

check(probe)
"""

PROCESS = """
libc.prctl(36, 1, 0, 0, 0)
libc.prctl(29, 12345, 0, 0, 0)
libc.prctl(41, 1, 0, 0, 0)
libc.prctl(1, 15, 0, 0, 0)
libc.personality(0x0040000)
open("/proc/self/coredump_filter", "w").write("0x7f")
mask = ctypes.c_ulong(1)
libc.syscall(238, 2, ctypes.byref(mask), 64)

def number(option):
    value = ctypes.c_int()
    libc.prctl(option, ctypes.byref(value), 0, 0, 0)
    return value.value

def policy():
    mode, nodes = ctypes.c_int(), ctypes.c_ulong()
    libc.syscall(239, ctypes.byref(mode), ctypes.byref(nodes), 64, 0, 0)
    return mode.value, nodes.value

check(lambda: (
    number(37), number(2), libc.prctl(30, 0, 0, 0, 0), libc.prctl(42, 0, 0, 0, 0),
    libc.personality(0xffffffff), open("/proc/self/coredump_filter").read(), policy(),
))
"""

WRITE_EXECUTE = """
result = libc.prctl(65, 1, 0, 0, 0)
child = os.fork()
check(lambda: (result, libc.prctl(66, 0, 0, 0, 0)))
"""

STREAMS = """
def opened(path, mode="w"):
    try:
        open(path, mode).write("")
        return "opened"
    except OSError as error:
        return error.errno

def probe():
    paths = ("/dev/stdout", "/dev/stderr", "/proc/self/fd/1")
    owners = [(s.st_uid, s.st_gid, s.st_mode) for s in (os.fstat(1), os.fstat(2))]
    return [opened(path) for path in paths], owners

check(probe)
"""

PIPES = """
ends = os.pipe()
memory = os.memfd_create("memory")
os.write(memory, b"x")
server = socket.create_server(("127.0.0.1", 5555))
pair = socket.socketpair()
flags = (os.O_RDONLY | os.O_NONBLOCK, os.O_WRONLY | os.O_NONBLOCK, os.O_RDWR)

def probe():
    for fd, flag in zip((*ends, memory), flags):
        os.close(os.open(f"/proc/self/fd/{fd}", flag))
    return [os.fstat(fd)[4:6] for fd in (*ends, memory, server.fileno(), pair[0].fileno())]

check(probe)
"""

SIGNALS = """
seen = []
for number in (signal.SIGCONT, signal.SIGCHLD):
    signal.signal(number, lambda number, frame: seen.append(number))
waiting = os.fork()
if waiting == 0:
    signal.pause()
    os._exit(0)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
os.kill(os.getpid(), signal.SIGUSR1)

def probe():
    status = os.waitid(os.P_PID, waiting, os.WCONTINUED | os.WSTOPPED | os.WNOHANG)
    return seen, signal.sigpending(), status

check(probe)
"""

TIMERS = """
thread = threading.Thread(target=time.sleep, args=(100000,), daemon=True)
thread.start()
for notify in (0, 4):
    event = struct.pack("qiii44x", 77, signal.SIGUSR1, notify, thread.native_id)
    number = ctypes.c_int()
    assert libc.syscall(222, time.CLOCK_MONOTONIC, event, ctypes.byref(number)) == 0
    libc.syscall(223, number.value, 0, struct.pack("qqqq", 5, 0, 1000, 0), 0)
check(lambda: open("/proc/self/timers").read())
"""

KEYRING = """
def probe():
    said = ctypes.create_string_buffer(256)
    libc.syscall(250, 6, ctypes.c_int(-3), said, 256)
    kind, uid, gid, permissions, name = said.value.decode().split(";")
    keys = libc.syscall(250, 11, ctypes.c_int(-3), None, 0)
    return kind, uid, gid, permissions, name.partition(".")[0], keys

check(probe)
"""

CASES = {
    "schedule": ("scheduling policy, affinity and I/O priority of threads", SCHEDULING),
    "process": ("timer slack, personality, core dump filter, NUMA policy", PROCESS),
    "mdwe": ("PR_SET_MDWE", WRITE_EXECUTE),
    "keyring": ("a session keyring of the container's own", KEYRING),
    "timers": ("POSIX timers of a process and of a thread", TIMERS),
    "signals": ("nobody sees that it was stopped", SIGNALS),
}
AS_USER = {
    "streams": ("another user's standard streams", STREAMS),
    "pipes": ("another user's pipes and sockets", PIPES),
}


def rows(table: dict[str, tuple[str, str]]) -> list[ParameterSet]:
    """The programs of *table* by their names, each a case of the matrix."""
    return [
        pytest.param(name, code, id=name, marks=pytest.mark.case(text, cases.RESTORED))
        for name, (text, code) in table.items()
    ]


def assert_same(
    nodes: Nodes, run_pod: RunPod, name: str, code: str, security: Security | None = None
) -> None:
    said = single.moved(nodes, run_pod, single.pod(name, code, security=security))
    assert "RESULT SAME" in said, said


@pytest.mark.parametrize(
    ("name", "code"),
    rows(CASES),
)
def test_a_process_is_set_as_it_was(nodes: Nodes, run_pod: RunPod, name: str, code: str) -> None:
    assert_same(nodes, run_pod, name, code)


@pytest.mark.parametrize(
    ("name", "code"),
    rows(AS_USER),
)
def test_what_was_a_users_is_the_users_again(
    nodes: Nodes, run_pod: RunPod, name: str, code: str
) -> None:
    assert_same(nodes, run_pod, name, code, Security(user=1000, group=1001))


TCP = """
server = socket.socket(socket.AF_INET6)
server.setsockopt(1, 2, 1)
server.setsockopt(1, 15, 1)
server.bind(("::", 5555))
server.setsockopt(6, 23, 16)
server.listen(77)
client = socket.create_connection(("127.0.0.1", 5555))
accepted, _ = server.accept()
deferred = socket.socket()
deferred.bind(("127.0.0.1", 5556))
deferred.setsockopt(6, 9, 7)
deferred.listen(5)
for level, name, value in (
    (1, 9, 1), (6, 4, 33), (6, 5, 44), (6, 6, 5), (6, 1, 1), (6, 18, 12345), (0, 1, 0x10),
    (0, 2, 33), (1, 13, struct.pack("ii", 1, 7)), (1, 12, 4), (6, 13, b"reno"), (6, 25, 16384),
    (1, 20, struct.pack("qq", 3, 0)), (6, 36, 1), (0, 10, 0), (1, 60, 1), (1, 10, 1), (1, 18, 10),
    (0, 11, 1), (1, 29, 1),
):
    client.setsockopt(level, name, value)
sockets = (server, client, accepted, deferred)
"""

UDP = """
four = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
four.bind(("0.0.0.0", 6000))
for level, name, value in (
    (1, 6, 1), (0, 8, 1), (0, 33, 7), (0, 34, 0), (0, 12, 1), (0, 13, 1), (0, 1, 0x20), (1, 29, 1),
    (0, 10, 2), (17, 104, 1),
):
    four.setsockopt(level, name, value)
six = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
six.bind(("::", 6001))
for level, name, value in (
    (41, 49, 1), (41, 18, 9), (41, 19, 0), (41, 16, 44), (41, 67, 0x20), (41, 66, 1), (41, 51, 1),
    (41, 62, 1), (41, 23, 2), (41, 25, 1), (41, 78, 1), (1, 40, 1), (1, 6, 1), (1, 35, 1),
    (17, 104, 1), (17, 103, 1200),
):
    six.setsockopt(level, name, value)
sockets = (four, six)
"""

ALL_OPTIONS = """
def probe():
    found = {}
    for number, one in enumerate(sockets):
        for level in (0, 1, 6, 17, 41):
            for name in range(1, 105):
                if (level, name) not in CHANGING:
                    try:
                        found[number, level, name] = one.getsockopt(level, name, 16)
                    except OSError as error:
                        found[number, level, name] = error.errno
    return found

# Times and windows of connections, processors, addresses of the network; what TCP does not use.
CHANGING = {
    (0, 33), (41, 18), (6, 26),
    (6, 2), (6, 10), (6, 11), (6, 12), (6, 19), (6, 20), (6, 21), (6, 22), (6, 24),
    (6, 29), (6, 35),
    (1, 4), (1, 7), (1, 8), (1, 17), (1, 49), (1, 55), (1, 56), (1, 57), (1, 59), (1, 71), (1, 77),
    (0, 14), (0, 9), (41, 6), (41, 24), (41, 61), (41, 59), (0, 32), (41, 17), (41, 75),
}
before = probe()
wait()
after = probe()
tell([], [(key, before[key], after[key]) for key in before if before[key] != after[key]])
"""

GROUPS = """
four = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
four.bind(("0.0.0.0", 6000))
four.setsockopt(0, 35, socket.inet_aton("239.1.2.3") + struct.pack("4si", bytes(4), 2))
other = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
other.bind(("::", 6001))
other.setsockopt(41, 20, socket.inet_pton(socket.AF_INET6, "ff02::1234") + struct.pack("i", 2))

def probe():
    joined = open("/proc/net/igmp").read(), open("/proc/net/igmp6").read()
    return ["030201EF" in joined[0], "ff020000000000000000000000001234" in joined[1]]

check(probe)
"""

NETLINK = """
route = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
route.bind((0, 1))
names = (3, 4, 5, 10, 11, 12)
for name in names:
    route.setsockopt(270, name, 1)
check(lambda: [route.getsockopt(270, name) for name in names])
"""

LISTENERS = """
import pwd
def connect(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        if path == "/dev/shm/root":
            server.accept()[0].close()
        return struct.unpack("iii", client.getsockopt(1, 17, 12))

server = socket.socket(socket.AF_UNIX)
server.bind("/dev/shm/root")
server.listen()
child = os.fork()
if child == 0:
    os.setgid(33)
    os.setuid(33)
    own = socket.socket(socket.AF_UNIX)
    own.bind("/dev/shm/www")
    own.listen(7)
    while True:
        own.accept()[0].close()
while not os.path.exists("/dev/shm/www"):
    time.sleep(0.01)
time.sleep(0.2)
check(lambda: (connect("/dev/shm/root"), connect("/dev/shm/www")))
"""

REUSEPORT = """
def listener():
    new = socket.socket()
    new.setsockopt(1, 15, 1)
    new.bind(("127.0.0.1", 5555))
    new.listen()
    return new

first = listener()
check(lambda: listener().close())
"""

SOCKETS = {
    "tcp": ("options of TCP sockets", TCP + ALL_OPTIONS),
    "udp": ("options of UDP sockets", UDP + ALL_OPTIONS),
    "groups": ("multicast groups that sockets have joined", GROUPS),
    "netlink": ("options of netlink sockets", NETLINK),
    "listeners": ("who listens at a unix socket, another user too", LISTENERS),
}


@pytest.mark.parametrize(
    ("name", "code"),
    rows(SOCKETS),
)
def test_a_socket_is_set_as_it_was(nodes: Nodes, run_pod: RunPod, name: str, code: str) -> None:
    assert_same(nodes, run_pod, name, code)


@pytest.mark.case("a second SO_REUSEPORT listener of another user", cases.RESTORED)
def test_a_user_may_listen_once_more_where_it_did(nodes: Nodes, run_pod: RunPod) -> None:
    assert_same(nodes, run_pod, "reuseport", REUSEPORT, Security(user=1000))


@pytest.mark.case("SO_PEERCRED of a connection that another user made", "restored, and warned of")
def test_a_connection_whose_peer_is_known_by_name_is_warned_of(
    nodes: Nodes, run_pod: RunPod
) -> None:
    code = """
server = socket.socket(socket.AF_UNIX)
server.bind("/dev/shm/server")
server.listen()
os.chmod("/dev/shm/server", 0o777)
if os.fork() == 0:
    os.setgid(33)
    os.setuid(33)
    client = socket.socket(socket.AF_UNIX)
    client.connect("/dev/shm/server")
    while True:
        time.sleep(1)
accepted, _ = server.accept()
wait()
"""
    source = single.started(nodes, run_pod, single.pod("peers", code))
    refused = checkpoints.take(source, "peers", "--strict", check=False)
    assert "uid 33, gid 33, of which SO_PEERCRED will say root (PeerCredentials)" in refused.stderr
    assert refused.returncode == 1
    assert "PeerCredentials" in checkpoints.take(source, "peers").stderr
    path = checkpoints.directory(nodes.a, "peers")
    assert "PeerCredentials" in {warning.kind for warning in checkpoints.read(path).warnings}
    for argv in (["grit", "inspect", "/mnt/grit-agent/default/peers"], ["grit", "status"]):
        assert "(PeerCredentials)" in nodes.a.run(argv).stdout


@pytest.mark.case("SQLite, and an eventfd that is a semaphore", "warned of")
def test_what_has_no_mend_is_refused_where_the_pod_is_strict(nodes: Nodes, run_pod: RunPod) -> None:
    code = """
import sqlite3
database = sqlite3.connect("/tmp/x.sqlite")
database.execute("create table t(n)")
database.commit()
counter = os.eventfd(3, os.EFD_SEMAPHORE)
wait()
"""
    spec = single.pod("strict", code, (("grit.dev/strict", "true"),))
    refused = checkpoints.take(single.started(nodes, run_pod, spec), "strict", check=False)
    assert refused.returncode == 1
    assert "has the SQLite database /tmp/x.sqlite open (InodeNumbers)" in refused.stderr
    assert (
        "has an eventfd that will no longer be a semaphore (EFD_SEMAPHORE) (EventfdSemaphore)"
        in refused.stderr
    )


@pytest.mark.case("a Landlock domain", "warned of")
@pytest.mark.parametrize("user", [0, 1000])
def test_a_sandbox_that_would_be_gone_is_warned_of(
    nodes: Nodes, run_pod: RunPod, user: int
) -> None:
    code = """
if os.fork() == 0:
    attributes = struct.pack("Q", 2)
    ruleset = libc.syscall(444, attributes, 8, 0)
    libc.prctl(38, 1, 0, 0, 0)
    assert libc.syscall(446, ruleset, 0) == 0
    os.close(ruleset)
    print("confined", flush=True)
    while True:
        time.sleep(1)
wait()
"""
    spec = single.pod(f"landlock-{user}", code, security=Security(user=user))
    source = single.started(nodes, run_pod, spec)
    source.wait_for_log(single.CONTAINER, "confined\n")
    refused = checkpoints.take(source, spec.name, "--strict", check=False)
    assert refused.stderr.count("has put itself in a Landlock domain (LandlockLost)") == 1


@pytest.mark.case("a process whose first thread has ended", cases.REFUSED)
def test_a_process_that_has_lost_its_first_thread_is_refused(nodes: Nodes, run_pod: RunPod) -> None:
    code = """
if os.fork() == 0:
    threading.Thread(target=lambda: time.sleep(100000)).start()
    libc.syscall(60, 0)
time.sleep(0.3)
wait()
"""
    source = single.started(nodes, run_pod, single.pod("leader", code))
    refused = checkpoints.take(source, "leader", check=False)
    assert "has lost its first thread and runs on in others" in refused.stderr
    assert "freeze" not in refused.stderr


@pytest.mark.case("a thread with descriptors, directory and umask of its own", cases.REFUSED)
def test_a_thread_apart_from_its_process_is_refused(nodes: Nodes, run_pod: RunPod) -> None:
    code = """
def run():
    assert libc.unshare(0x200 | 0x400) == 0
    os.chdir("/tmp")
    wait()

threading.Thread(target=run).start()
"""
    source = single.started(nodes, run_pod, single.pod("apart", code))
    refused = checkpoints.take(source, "apart", check=False)
    assert "with descriptors of its own (unshare), which would not come back" in refused.stderr
    assert "with a working directory and umask of its own" in refused.stderr
    assert "freeze" not in refused.stderr


@pytest.mark.case("a POSIX timer of the first thread (SIGEV_THREAD_ID)", cases.REFUSED)
def test_a_timer_of_the_first_thread_is_refused(nodes: Nodes, run_pod: RunPod) -> None:
    code = """
event = struct.pack("qiii44x", 0, signal.SIGUSR1, 4, os.getpid())
assert libc.syscall(222, time.CLOCK_MONOTONIC, event, ctypes.byref(ctypes.c_int())) == 0
wait()
"""
    source = single.started(nodes, run_pod, single.pod("timer", code))
    refused = checkpoints.take(source, "timer", check=False)
    assert "has a timer that signals its first thread" in refused.stderr
    assert "freeze" not in refused.stderr


@pytest.mark.case("a process that shares its directory with its parent (CLONE_FS)", cases.REFUSED)
def test_a_process_that_shares_its_directory_is_refused(nodes: Nodes, run_pod: RunPod) -> None:
    code = """
if libc.syscall(56, 0x200 | signal.SIGCHLD, 0, 0, 0, 0) == 0:
    time.sleep(1000)
wait()
"""
    source = single.started(nodes, run_pod, single.pod("shared", code))
    refused = checkpoints.take(source, "shared", check=False)
    assert "shares working directory and umask (CLONE_FS) with its parent" in refused.stderr
    assert "freeze" not in refused.stderr
