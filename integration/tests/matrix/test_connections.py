"""TCP connections, listeners and addresses."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from subprocess import PIPE

import pytest

from integration.node import images
from integration.node.cri import CriError
from integration.pods import checkpoints, kubelet
from integration.pods.pod_spec import ContainerSpec, PodSpec
from integration.tests.matrix import cases, single

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.node.node import Node
    from integration.pods.kubelet import Pod
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

CONTAINER = "talker"
PORT = 7777

# Sends numbers to whoever echoes them and prints what comes back; the peer is itself, or elsewhere.
ECHO = """
import socket, sys, threading, time

def serve(listener):
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=echo, args=(connection,), daemon=True).start()

def echo(connection):
    while data := connection.recv(100):
        connection.sendall(data)

def listen(address):
    listener = socket.create_server((address, {port}))
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
    return listener
"""
ECHO = ECHO.replace("{port}", str(PORT))
TALK = """
def talk(connection):
    count = 0
    while True:
        count += 1
        try:
            connection.sendall(b"%d" % count)
            answer = connection.recv(100).decode()
        except OSError as error:
            answer = ""
            print("cut off:", error, flush=True)
        if not answer:
            print("over", flush=True)
            time.sleep(1000)
        print(answer, flush=True)
        time.sleep(0.05)
"""
TO_ITSELF = (
    f"{ECHO}{TALK}listen('127.0.0.1')\ntalk(socket.create_connection(('127.0.0.1', {PORT})))"
)
TO_NODE = f"{ECHO}{TALK}talk(socket.create_connection((sys.argv[1], {PORT})))"
ON_ITS_ADDRESS = (
    f"{ECHO}{TALK}address = socket.gethostbyname(socket.gethostname())\n"
    f"listen(address)\nprint('at', address, flush=True)\n"
    f"talk(socket.create_connection((address, {PORT})))"
)
NODE_ECHO = f"{ECHO}listen(sys.argv[1])\nprint('ready', flush=True)\ntime.sleep(1000)"


def pod(name: str, program: str, *arguments: str, **asked: str) -> PodSpec:
    """A pod that runs *program*; *asked* are annotations."""
    container = ContainerSpec(
        name=CONTAINER,
        image=images.PYTHON,
        command=("/usr/bin/python3", "-c", program, *arguments),
    )
    annotations = tuple((f"grit.dev/{key.replace('_', '-')}", asked[key]) for key in asked)
    return PodSpec(name=name, containers=(container,), annotations=annotations)


@contextmanager
def echo_on(node: Node, address: str) -> Iterator[None]:
    """A process of the node itself that echoes."""
    argv = ["python3", "-c", NODE_ECHO, address]
    with node.popen(argv, stdout=PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        try:
            yield
        finally:
            os.kill(node.command_pid(server), signal.SIGKILL)


def address_of(node: Node) -> str:
    return node.run(["hostname", "-I"]).stdout.split()[0]


def wait_for_answers(pod: Pod, count: int) -> None:
    pod.wait_for_log(CONTAINER, f"\n{count}\n")


@pytest.mark.case("a connection of a container with itself, over loopback", cases.RESTORED)
def test_a_connection_within_a_container_goes_on(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, pod("itself", TO_ITSELF))
    wait_for_answers(source, 5)
    cases.move(nodes, source, "itself")
    target = run_pod(nodes.b, pod("itself", TO_ITSELF, restore_name="itself"))
    said = target.logs(CONTAINER).split()
    wait_for_answers(target, int(said[-1]) + 10)
    assert "over" not in target.logs(CONTAINER)


@pytest.mark.case("a listener and a connection on the pod's own address", cases.RESTORED)
def test_sockets_on_the_old_address_go_on(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, pod("address", ON_ITS_ADDRESS))
    wait_for_answers(source, 5)
    old = source.ip
    cases.move(nodes, source, "address")
    target = run_pod(nodes.b, pod("address", ON_ITS_ADDRESS, restore_name="address"))
    assert target.ip != old
    said = target.logs(CONTAINER).split()
    wait_for_answers(target, int(said[-1]) + 10)
    shown = nodes.b.run([*netns(target), "ip", "addr", "show", "lo"])
    assert f"inet {old}/32 scope global lo" in shown.stdout


@pytest.mark.case("a connection to the outside, nothing said", cases.REFUSED)
def test_a_connection_to_the_outside_is_named(nodes: Nodes, run_pod: RunPod) -> None:
    address = address_of(nodes.a)
    with echo_on(nodes.a, address):
        source = run_pod(nodes.a, pod("outside", TO_NODE, address))
        wait_for_answers(source, 3)
        refused = checkpoints.take(source, "outside", check=False)
        assert f"{address}:{PORT}" in refused.stderr
        assert f"in container {CONTAINER}: {source.ip}:" in refused.stderr
        assert "or say grit.dev/tcp: close" in refused.stderr
        assert checkpoints.left_by_checkpoints(nodes.a) == []
        wait_for_answers(source, int(source.logs(CONTAINER).split()[-1]) + 5)


@pytest.mark.case("a connection to the outside, tcp: close", cases.RESTORED)
def test_a_connection_can_be_closed(nodes: Nodes, run_pod: RunPod) -> None:
    address = address_of(nodes.a)
    with echo_on(nodes.a, address):
        source = run_pod(nodes.a, pod("closed", TO_NODE, address, tcp="close"))
        wait_for_answers(source, 3)
        cases.move(nodes, source, "closed")
    spec = pod("closed", TO_NODE, address, tcp="close", restore_name="closed")
    run_pod(nodes.b, spec).wait_for_log(CONTAINER, "over\n")


@pytest.mark.case("a connection to the outside, tcp: established, old address", cases.RESTORED)
def test_a_connection_goes_on_where_its_address_is(nodes: Nodes, run_pod: RunPod) -> None:
    address = address_of(nodes.a)
    with echo_on(nodes.a, address):
        source = run_pod(nodes.a, pod("kept", TO_NODE, address, tcp="established"))
        wait_for_answers(source, 3)
        old = source.ip
        checkpoints.take(source, "kept", "--after", "frozen")
        source.stop(grace_period_s=0)
        source.remove()
        spec = pod("kept", TO_NODE, address, tcp="established", restore_name="kept")
        with kubelet.sandbox(nodes.a, spec) as target:
            target.create(CONTAINER)
            with pytest.raises(CriError, match=f"needs the address {old}"):
                target.start(CONTAINER)
            assert checkpoints.left_by_restores(target) == []
            inside = netns(target)
            nodes.a.run([*inside, "ip", "addr", "add", f"{old}/24", "dev", "eth0"])
            target.restart(CONTAINER)
            wait_for_answers(target, int(target.logs(CONTAINER).split()[-1]) + 5)


def netns(pod: Pod) -> list[str]:
    """A command line's beginning that enters the pod's network."""
    listed = pod.node.run(["ctr", "-n", "k8s.io", "task", "ls"]).stdout.splitlines()
    pid = next(line.split()[1] for line in listed if line.startswith(pod.sandbox_id))
    return ["nsenter", "-t", pid, "-n"]


# A pair over loopback, of which one end ends the connection as the case says.
PAIR = """
listener = socket.create_server(("127.0.0.1", 5555))
one = socket.create_connection(("127.0.0.1", 5555))
other, _ = listener.accept()
answered = socket.create_connection(("127.0.0.1", 5555))
echoed, _ = listener.accept()

def sends():
    try:
        return one.send(b"x")
    except OSError as error:
        return errno.errorcode[error.errno]

def seen():
    answered.sendall(b"still")
    return one.getsockname(), echoed.recv(9), sends()
"""


@pytest.mark.case("a TCP socket whose connection is over, held on to", cases.RESTORED)
@pytest.mark.parametrize(
    "ended",
    [
        "one.shutdown(2); other.shutdown(2); time.sleep(0.1)",
        "one = socket.socket(); one.setblocking(False); one.connect_ex(('127.0.0.1', 9)); sends()",
        "other.setsockopt(1, 13, struct.pack('ii', 1, 0)); other.close(); sends()",
    ],
    ids=["shut-down", "refused", "reset"],
)
@pytest.mark.parametrize("asked", ["kept", "close"])
def test_a_connection_that_is_over_stays_so(
    nodes: Nodes, run_pod: RunPod, request: pytest.FixtureRequest, ended: str, asked: str
) -> None:
    code = f"{PAIR}{ended}\ncheck({'sends' if asked == 'close' else 'seen'})"
    annotations = (("grit.dev/tcp", "close"),) if asked == "close" else ()
    name = f"over-{request.node.callspec.id}"
    assert "RESULT SAME" in single.moved(nodes, run_pod, single.pod(name, code, annotations))


@pytest.mark.case("what no dump has of what was received", "a warning")
@pytest.mark.parametrize(
    ("kind", "received"),
    [
        (
            "a TCP socket whose connection is over",
            f"{PAIR}other.send(b'x'); other.shutdown(2); one.shutdown(2)",
        ),
        (
            "a UDP socket",
            """
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.bind(("127.0.0.1", 5555))
one.sendto(b"", ("127.0.0.1", 5555))
""",
        ),
    ],
    ids=["tcp", "udp"],
)
def test_what_was_received_and_will_be_lost_is_told(
    nodes: Nodes, run_pod: RunPod, request: pytest.FixtureRequest, kind: str, received: str
) -> None:
    name = f"received-{request.node.callspec.id}"
    source = single.started(nodes, run_pod, single.pod(name, f"{received}\nwait()"))
    refused = checkpoints.take(source, name, "--strict", check=False)
    assert f"has not read all that {kind} has received" in refused.stderr
    assert checkpoints.left_by_checkpoints(nodes.a) == []
    checkpoints.take(source, name)
    (warning,) = checkpoints.read(checkpoints.directory(nodes.a, name)).warnings
    assert (warning.kind, warning.pid) == ("ReceivedLost", source.pid(single.CONTAINER))


@pytest.mark.case("a connection within a container with bytes that never left", cases.RESTORED)
def test_bytes_that_were_never_sent_arrive(nodes: Nodes, run_pod: RunPod) -> None:
    code = """
import hashlib
listener = socket.create_server(("127.0.0.1", 5555))
one = socket.create_connection(("127.0.0.1", 5555))
other, _ = listener.accept()
one.setblocking(False)
sent = b""
try:
    while True:
        piece = os.urandom(65536)
        sent += piece[:one.send(piece)]
except BlockingIOError:
    wait()
other.settimeout(10)
got = b""
while len(got) < len(sent):
    got += other.recv(65536)
tell(hashlib.sha256(sent).digest(), hashlib.sha256(got).digest())
"""
    assert "RESULT SAME" in single.moved(nodes, run_pod, single.pod("unsent", code))


@pytest.mark.case("a connection whose other end sends no more: its window", cases.RESTORED)
def test_who_sends_to_one_that_has_ended_need_not_wait(nodes: Nodes, run_pod: RunPod) -> None:
    code = f"""{PAIR}
one.shutdown(socket.SHUT_WR)
other.recv(1)

def window():
    (size_bytes,) = struct.unpack_from("I", other.getsockopt(6, socket.TCP_INFO, 232), 228)
    return size_bytes, other.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)

check(window)
"""
    assert "RESULT SAME" in single.moved(nodes, run_pod, single.pod("window", code))


@pytest.mark.case("a connection that nobody has accepted, tcp: close", cases.RESTORED)
def test_a_connection_in_a_backlog_can_be_closed(nodes: Nodes, run_pod: RunPod) -> None:
    code = """
listener = socket.create_server(("127.0.0.1", 5555))
one = socket.create_connection(("127.0.0.1", 5555))
wait()
two = socket.create_connection(("127.0.0.1", 5555))
listener.settimeout(10)
accepted = listener.accept()[1]
try:
    one.sendall(b"x")
except OSError as error:
    tell((two.getsockname(), errno.EPIPE), (accepted, error.errno))
"""
    spec = single.pod("backlog", code, (("grit.dev/tcp", "close"),))
    assert "RESULT SAME" in single.moved(nodes, run_pod, spec)


@pytest.mark.case("a connection that nobody has accepted, tcp: established", cases.REFUSED)
@pytest.mark.parametrize("asked", ["", "established"])
def test_a_connection_in_a_backlog_is_refused_with_its_listener(
    nodes: Nodes, run_pod: RunPod, asked: str
) -> None:
    code = """
listener = socket.create_server(("127.0.0.1", 5555))
one = socket.create_connection(("127.0.0.1", 5555))
check(lambda: 0)
"""
    annotations = (("grit.dev/tcp", asked),) if asked else ()
    source = single.started(nodes, run_pod, single.pod(f"waiting{asked}", code, annotations))
    refused = checkpoints.take(source, "waiting", check=False)
    assert "in container main: connections to 127.0.0.1:5555 wait to be accepted" in refused.stderr
    assert "freeze" not in refused.stderr
    assert checkpoints.left_by_checkpoints(nodes.a) == []
    assert "RESULT SAME" in single.go_on(source)


KINDS = {
    "half closed, unread": """
one.sendall(b"before"); one.shutdown(1); time.sleep(0.1)
def seen():
    other.settimeout(10); one.settimeout(10)
    got = other.recv(10), other.recv(10)
    other.sendall(b"after")
    return got, one.recv(10)
wait(); tell(((b"before", b""), b"after"), seen())
""",
    "closed by the other end, unread": """
other.sendall(b"last"); other.close(); time.sleep(0.1)
wait(); one.settimeout(10)
tell((b"last", b""), (one.recv(10), one.recv(10)))
""",
    "IPv6": """
listener = socket.create_server(("::1", 6666), family=socket.AF_INET6)
one = socket.create_connection(("::1", 6666))
other, _ = listener.accept()
one.sendall(b"x")
wait(); other.settimeout(10); late = socket.create_connection(("::1", 6666))
tell((b"x", one.getsockname()), (other.recv(10), other.getpeername()))
""",
    "connected UDP": """
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); receiver.bind(("127.0.0.1", 7777))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); sender.connect(("127.0.0.1", 7777))
wait(); sender.send(b"x"); receiver.settimeout(10)
tell((b"x", sender.getsockname()), receiver.recvfrom(10))
""",
    "many at once": """
pairs = []
for _ in range(100):
    near = socket.create_connection(("127.0.0.1", 5555))
    pairs.append((near, listener.accept()[0]))
wait()
for number, (near, far) in enumerate(pairs):
    near.sendall(b"%d" % number)
tell([b"%d" % number for number in range(100)], [far.recv(10) for _, far in pairs])
""",
}


@pytest.mark.case("connections within a container in many states", cases.RESTORED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_in_any_state_goes_on(nodes: Nodes, run_pod: RunPod, kind: str) -> None:
    name = "state-" + "".join(letter for letter in kind.lower() if letter.isalnum())
    said = single.moved(nodes, run_pod, single.pod(name, f"{PAIR}{KINDS[kind]}"))
    assert "RESULT SAME" in said
