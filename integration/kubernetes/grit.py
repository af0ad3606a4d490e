"""grit in a cluster: what runtime-config/kubernetes installs, with the manager beside the plane.

The manager runs from this checkout with its own ServiceAccount, in place of the Deployment's pods:
there is no image of it here. The agents are the DaemonSet's, and run what is installed on nodes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress

import yaml

from grit_runtime.host import procfs
from grit_runtime.manager import names
from integration.kubernetes import agents, control_plane
from integration.kubernetes.control_plane import AUDIT
from integration.node.network import ROUTER

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Any

    from integration.kubernetes.cluster import Cluster

TIMEOUT_S = 90
STOP_S = 30  # as kubelet gives it

_NOT_HERE = {
    ("Deployment", names.MANAGER),
    ("PodDisruptionBudget", names.MANAGER),  # policy/v1 is of 1.21
}
_FACTS = "manager.grit.dev/facts"


class Manager:
    """The manager, started again whenever it ends, as kubelet does."""

    def __init__(self, cluster: Cluster, log: Path, shift: int = 0) -> None:
        self._cluster = cluster
        self._log = log
        self._shift = shift  # of its ports
        self._tokens: tuple[Path, Path] | None = None  # kubeconfig, and for agents
        self.start()

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def pid(self) -> int:
        """Of the manager itself, as long as it is not started again."""
        (pid,) = procfs.children(self._process.pid)
        return pid

    def requests(self) -> int:
        """How many the API server has had of it, by its audit log."""
        lines = self._cluster.plane.path(AUDIT).read_text().splitlines()
        return sum(f":{names.NAMESPACE}:{names.MANAGER}" in line for line in lines)

    def objects(self) -> str:
        """What there is of grit's and of pods, and what has happened to them."""
        kinds = "pods,checkpoints,restores,migrations,events"
        listed = self._cluster.kubectl("get", kinds, "-o", "wide", check=False).stdout
        described = self._cluster.kubectl("describe", "restores", check=False).stdout
        return f"{listed}\n{described}"

    def start(self) -> None:
        """Start it; it serves and leads in a moment."""
        self._is_wanted = True
        self._process = self._start()
        self._keeping = threading.Thread(target=self._keep)
        self._keeping.start()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """While the block runs, it does not get the processor; what it knew is old afterwards."""
        with control_plane.stopped(self._process):
            yield

    def kill(self) -> None:
        """End it without a chance to say anything."""
        os.killpg(self._process.pid, signal.SIGKILL)  # with what has entered the namespaces

    def stop(self) -> None:
        """End it until it is started again."""
        self._is_wanted = False
        for program in procfs.children(self._process.pid):  # nsenter would not wait for its end
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(program, signal.SIGTERM)
        self._keeping.join(STOP_S)
        if self._keeping.is_alive():
            self.kill()
            self._keeping.join()
            raise AssertionError(f"the manager has not ended within {STOP_S} s")

    def _keep(self) -> None:
        while self._process.wait() is not None and self._is_wanted:
            self._process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        try:
            self._tokens = self._new_tokens()
        except AssertionError:  # the API server does not answer: kubelet has those of before
            if self._tokens is None:
                raise
        account, path = self._tokens
        argv = [sys.executable, "-m", "grit_runtime.cli.main", "manager", "--agent-token", path]
        argv += ["--webhook-port", str(names.WEBHOOK_PORT + self._shift)]
        argv += ["--metrics-port", str(names.METRICS_PORT + self._shift)]
        with self._log.open("a") as log:
            return self._cluster.plane.popen(argv, stdout=log, stderr=log, kubeconfig=account)

    def _new_tokens(self) -> tuple[Path, Path]:
        account = self._cluster.service_account(names.MANAGER, names.NAMESPACE)
        token = agents.token(self._cluster, names.MANAGER, names.NAMESPACE, audience=names.AGENT)
        return account, self._cluster.plane.write("agent-token", token)


@contextmanager
def installed(cluster: Cluster, log: Path) -> Iterator[Manager]:
    """While the block runs, the cluster has grit; the manager's log is in the file *log*."""
    objects = [
        changed
        for one in yaml.safe_load_all(cluster.kubectl("kustomize", agents.OLDER).stdout)
        if (changed := _here(one))
    ]
    first = ("Namespace", "CustomResourceDefinition")
    cluster.apply(*(one for one in objects if one["kind"] in first))
    cluster.apply(*(one for one in objects if one["kind"] not in first), _endpoints())
    manager = Manager(cluster, log)
    try:
        if cluster.nodes:
            _wait(cluster, "all nodes have facts", lambda: _have_facts(cluster))
        _wait(cluster, "webhooks are trusted", lambda: _are_trusted(cluster))
        yield manager
    finally:
        manager.stop()


def _here(one: dict[str, Any]) -> dict[str, Any] | None:
    """An object as it is applied here; None if it is not."""
    name = one["metadata"]["name"]
    if (one["kind"], name) in _NOT_HERE:
        return None
    if (one["kind"], name) == ("Service", names.MANAGER):
        del one["spec"]["selector"]
    return agents.here(one)


def _endpoints() -> dict[str, Any]:
    """Where the manager is: beside the control plane."""
    ports = [
        {"name": "webhooks", "port": names.WEBHOOK_PORT},
        {"name": "metrics", "port": names.METRICS_PORT},
    ]
    return {
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": names.MANAGER, "namespace": names.NAMESPACE},
        "subsets": [{"addresses": [{"ip": ROUTER}], "ports": ports}],
    }


def _have_facts(cluster: Cluster) -> bool:
    nodes = cluster.get("nodes")["items"]
    return all(_FACTS in (node["metadata"].get("annotations") or {}) for node in nodes)


def _are_trusted(cluster: Cluster) -> bool:
    kinds = ("mutatingwebhookconfiguration", "validatingwebhookconfiguration")
    found = [cluster.get(kind, names.MANAGER) for kind in kinds]
    return all(hook["clientConfig"].get("caBundle") for one in found for hook in one["webhooks"])


def _wait(cluster: Cluster, what: str, is_so: Any) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        if time.monotonic() > deadline:
            pods = cluster.kubectl("get", "pods", "-A", "-o", "wide", check=False).stdout
            raise AssertionError(f"after {TIMEOUT_S} s not: {what}\n{pods}")
        time.sleep(0.2)


def ended(
    cluster: Cluster, kind: str, name: str, *phases: str, timeout_s: float = TIMEOUT_S
) -> dict[str, Any]:
    """The object's status once it is in one of *phases*, or has failed."""
    deadline = time.monotonic() + timeout_s
    while True:
        status: dict[str, Any] = cluster.get(kind, name).get("status") or {}
        if status.get("phase") in (*phases, "Failed"):
            return status
        assert time.monotonic() < deadline, f"{kind} {name} is {json.dumps(status, indent=1)}"
        time.sleep(0.2)
