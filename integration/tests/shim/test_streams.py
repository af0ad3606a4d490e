"""What `kubectl exec -it`, `attach` and `port-forward` do, under containerd-shim-grit-v1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grit_runtime.proto import cri_pb2
from integration.node import images
from integration.pods.pod_spec import ContainerSpec, PodSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.pods.kubelet import Pod
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes", "shim_handler")

STDOUT, ERROR = 1, 3  # channels of exec and attach

CLIENT = Path(__file__).with_name("kubectl_stream_client.py").read_text()


def talking(name: str, *command: str, tty: bool = False) -> PodSpec:
    """A pod whose container reads its standard input."""
    main = ContainerSpec(name="main", image=images.BUSYBOX, command=command, stdin=True, tty=tty)
    return PodSpec(name=name, containers=(main,))


def talk(pod: Pod, url: str, typed: str, *, until: str = "") -> list[str]:
    """Send to a stream of containerd's; what came on each channel until *until*, or in all."""
    argv = ["python3", "-c", CLIENT, url, typed, until]
    return list(json.loads(pod.node.run(argv).stdout))


def attach(pod: Pod, *, tty: bool) -> str:
    request = cri_pb2.AttachRequest(
        container_id=pod.container_ids["main"], stdin=True, stdout=True, stderr=not tty, tty=tty
    )
    return pod.node.cri.call("Attach", request, cri_pb2.AttachResponse).url


def exec_stream(pod: Pod, *command: str, tty: bool) -> str:
    request = cri_pb2.ExecRequest(
        container_id=pod.container_ids["main"],
        cmd=command,
        stdin=True,
        stdout=True,
        stderr=not tty,
        tty=tty,
    )
    return pod.node.cri.call("Exec", request, cri_pb2.ExecResponse).url


def test_attach_reaches_a_container_that_reads(nodes: Nodes, run_pod: RunPod) -> None:
    pod = run_pod(nodes.a, talking("cat", "cat"))
    assert talk(pod, attach(pod, tty=False), "one\n", until="one\n")[STDOUT] == "one\n"
    # who attaches may leave and come back: the container's input goes on
    assert talk(pod, attach(pod, tty=False), "two\n", until="two\n")[STDOUT] == "two\n"
    assert pod.logs("main") == "one\ntwo\n"


def test_attach_reaches_a_containers_terminal(nodes: Nodes, run_pod: RunPod) -> None:
    pod = run_pod(nodes.a, talking("shell", "sh", tty=True))
    said = talk(pod, attach(pod, tty=True), "echo $((6 * 7)) $(tty)\n", until="42 /dev/pts/0\r\n")
    assert "42 /dev/pts/0\r\n" in said[STDOUT]


@pytest.mark.parametrize("tty", [False, True], ids=["pipes", "terminal"])
def test_a_streaming_exec_has_its_input_and_its_exit_code(
    nodes: Nodes, run_pod: RunPod, *, tty: bool
) -> None:
    pod = run_pod(nodes.a, talking("exec", "cat"))
    url = exec_stream(pod, "sh", "-c", "read line; echo $line back; exit 3", tty=tty)
    said = talk(pod, url, "there\n")
    assert said[STDOUT].endswith("there back\r\n" if tty else "there back\n")
    assert '"message":"3"' in said[ERROR]  # the exit code, in Kubernetes' words


def test_a_port_of_the_pod_can_be_forwarded(nodes: Nodes, run_pod: RunPod) -> None:
    serve = "echo ready; echo from the pod | nc -l -p 8080"
    pod = run_pod(nodes.a, talking("port", "sh", "-c", serve))
    pod.wait_for_log("main", "ready\n")
    request = cri_pb2.PortForwardRequest(pod_sandbox_id=pod.sandbox_id, port=[8080])
    url = pod.node.cri.call("PortForward", request, cri_pb2.PortForwardResponse).url
    data, error, *_ = talk(pod, f"{url}?port=8080", "", until="from the pod\n")
    port = (8080).to_bytes(2, "little").decode("latin-1")  # each channel begins with it
    assert data == f"{port}from the pod\n"
    assert error == port
