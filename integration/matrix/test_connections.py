"""TCP connections, listeners and addresses."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from subprocess import PIPE

import pytest

from integration import checkpoints, images, kubelet
from integration.cri import CriError
from integration.matrix import cases
from integration.pod_spec import ContainerSpec, PodSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.conftest import Nodes, RunPod
    from integration.kubelet import Pod
    from integration.node import Node

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
