"""A Kubernetes cluster: a control plane alone, or with two nodes that a real kubelet runs on."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from contextlib import ExitStack, contextmanager
from typing import Any

from integration.kubernetes import credentials, kubelet, programs
from integration.kubernetes.control_plane import ASK_AGAIN_S, SERVER, ControlPlane
from integration.node.network import Network
from integration.node.node import RUNTIME_CONFIG, SHIM_HANDLER, Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from integration.node.rootfs import Edition

NODES = ("node-a", "node-b")
SHIM_CLASS = {
    "apiVersion": "node.k8s.io/v1",
    "kind": "RuntimeClass",
    "metadata": {"name": SHIM_HANDLER},
    "handler": SHIM_HANDLER,
}
WAIT_TIMEOUT_S = 60


class Cluster:
    """What the tests ask of a cluster, as its administrator unless they say otherwise."""

    def __init__(self, plane: ControlPlane, nodes: Sequence[Node] = ()) -> None:
        self.plane = plane
        self.nodes = nodes

    def node(self, name: str) -> Node:
        """The node of that name."""
        return next(node for node in self.nodes if node.name == name)

    def kubectl(
        self,
        *words: str | Path,
        check: bool = True,
        input: str | None = None,  # noqa: A002 -- as in subprocess.run
        timeout_s: float = WAIT_TIMEOUT_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl to its end, output captured apart."""
        limit = ["timeout", "--signal=KILL", str(timeout_s)]
        done = subprocess.run(
            [*self.plane.enter_argv(), *limit, self.plane.programs / "kubectl", *words],
            input=input or "",
            capture_output=True,
            check=False,
            text=True,
        )
        if check and done.returncode != 0:
            command = " ".join(map(str, words))
            raise AssertionError(
                f"kubectl {command} ended {done.returncode}: {done.stdout}{done.stderr}"
            )
        return done

    def apply(self, *objects: dict[str, Any]) -> None:
        """Have the *objects* be as they say."""
        everything = {"apiVersion": "v1", "kind": "List", "items": objects}
        self.kubectl("apply", "-f", "-", input=json.dumps(everything))

    def get(self, *words: str) -> Any:
        """What `kubectl get` says of an object, or of several as a list's items."""
        return json.loads(self.kubectl("get", *words, "-o", "json").stdout)

    def wait(self, *words: str, timeout_s: float = WAIT_TIMEOUT_S) -> None:
        """`kubectl wait`; the object has to be there."""
        self.kubectl("wait", *words, f"--timeout={timeout_s}s", timeout_s=timeout_s + 10)

    def pod_log(self, pod: str, *words: str) -> str:
        """What a pod has printed."""
        return self.kubectl("logs", pod, *words).stdout

    def wait_for_log(self, pod: str, line: str, *words: str) -> None:
        """Wait until *pod* has printed a line that the pattern *line* matches."""
        deadline = time.monotonic() + WAIT_TIMEOUT_S
        while (left_s := deadline - time.monotonic()) > 0:
            argv = ["timeout", "--foreground", str(left_s), self.plane.programs / "kubectl"]
            argv += ["logs", "--follow", pod, *words]
            with self.plane.popen(
                argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            ) as following:
                assert following.stdout
                if any(re.fullmatch(line, printed[:-1]) for printed in following.stdout):
                    os.killpg(following.pid, signal.SIGTERM)
                    return
            if following.returncode == 0:
                break  # that was all
            time.sleep(ASK_AGAIN_S)  # its container has not started
        said = self.kubectl("logs", pod, *words, check=False)
        raise AssertionError(f"pod {pod} has not printed {line}: {said.stdout}{said.stderr}")

    def service_account(self, name: str, namespace: str = "default") -> Path:
        """A kubeconfig file of a ServiceAccount, for programs beside the control plane."""
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        answer = self.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(request))
        user = {"token": json.loads(answer.stdout)["status"]["token"]}
        text = credentials.kubeconfig(SERVER, self.plane.authority.certificate, user)
        return self.plane.write(f"{namespace}-{name}.kubeconfig", text)

    def collect_logs(self) -> str:
        """All that may tell why a test failed."""
        logs = [node.collect_logs() for node in self.nodes]
        return "\n".join([self.plane.collect_logs(), *logs])


@contextmanager
def control_plane() -> Iterator[Cluster]:
    """A cluster without nodes: objects are kept and controlled, and no pod runs."""
    with _starting() as plane:
        plane.become_ready()
        yield Cluster(plane)


@contextmanager
def running(edition: Edition) -> Iterator[Cluster]:
    """A cluster with the nodes NODES, ready for pods of the RuntimeClasses grit and grit-shim."""
    with _starting() as plane, ExitStack() as stack:
        nodes = [
            stack.enter_context(Node(edition, name=name, network=plane.network)) for name in NODES
        ]
        cluster = Cluster(plane, nodes)
        plane.become_ready()
        for node in nodes:
            stack.enter_context(kubelet.running(node, plane))
        cluster.kubectl("apply", "-f", RUNTIME_CONFIG / "kubernetes/runtimeclass.yaml")
        cluster.apply(SHIM_CLASS)
        for name in NODES:
            ready = ["wait", "--for=condition=Ready", f"node/{name}", "--timeout=10s"]
            plane.wait_until(f"{name} is ready", *ready)
        yield cluster


@contextmanager
def _starting() -> Iterator[ControlPlane]:
    with (
        programs.use() as directory,
        Network() as network,
        ControlPlane(network, directory) as plane,
    ):
        yield plane
