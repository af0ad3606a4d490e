"""Certificates whose time is over, and a manager's own last moment."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from grit_runtime import certificates
from grit_runtime.agent import identity
from grit_runtime.config import Config
from grit_runtime.manager import agents, authority, names
from grit_runtime.manager.api import CHECKPOINTED, FAILED
from integration.kubernetes import grit, pods
from integration.kubernetes.objects import evict, made, refused, started, until

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.kubernetes.cluster import Cluster
    from integration.kubernetes.grit import Manager

ENDED = -1 / 1440  # of a day: its last minute is over
SERVICE = f"{names.MANAGER}.{names.NAMESPACE}.svc"
SERVE = """
import http.server, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2])
server = http.server.ThreadingHTTPServer(("", int(sys.argv[1])), http.server.BaseHTTPRequestHandler)
server.socket = context.wrap_socket(server.socket, server_side=True)
print("serves", flush=True)
server.serve_forever()
"""


@pytest.fixture
def ca(kubernetes: Cluster, manager: Manager) -> tuple[bytes, bytes]:  # noqa: ARG001
    """The cluster's CA and its key."""
    data = kubernetes.get("secret", names.CERTIFICATES, "-n", names.NAMESPACE)["data"]
    pem, key = (base64.b64decode(data[name]) for name in (authority.CA, authority.CA_KEY))
    return pem, key


@contextmanager
def serving(kubernetes: Cluster, pem: bytes) -> Iterator[None]:
    """In the manager's place somebody answers with that certificate."""
    path = kubernetes.plane.write("ended.pem", pem.decode())
    argv = [sys.executable, "-c", SERVE, names.WEBHOOK_PORT, path]
    with kubernetes.plane.popen(argv, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "serves\n"
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # with what has entered the namespaces


def apply_once_served(kubernetes: Cluster, one: dict[str, Any]) -> None:
    """Have the object be there, as soon as a manager that was started answers."""
    words, text = ("apply", "-f", "-"), json.dumps(one)
    until(
        "it is taken",
        lambda: kubernetes.kubectl(*words, input=text, check=False).returncode == 0,
    )


def test_a_webhook_s_certificate_that_has_ended_stops_no_pod_and_a_manager_has_another(
    kubernetes: Cluster, manager: Manager, ca: tuple[bytes, bytes], name: str
) -> None:
    manager.stop()
    try:
        with serving(kubernetes, b"".join(certificates.new_signed((SERVICE,), *ca, ENDED))):
            pod = started(kubernetes, pods.counter(name))
            said = refused(kubernetes, made("Checkpoint", name, podName=pod))
            assert "certificate has expired" in said
    finally:
        manager.start()
    apply_once_served(kubernetes, made("Checkpoint", name, podName=pod))
    status = grit.ended(kubernetes, "checkpoint", name, CHECKPOINTED)
    assert status["phase"] == CHECKPOINTED, status


def test_an_agent_s_certificate_that_has_ended_is_the_reason_and_a_new_one_the_way_out(
    kubernetes: Cluster, manager: Manager, ca: tuple[bytes, bytes], name: str
) -> None:
    pod = started(kubernetes, pods.counter(name))
    node = kubernetes.node(kubernetes.get("pod", pod)["spec"]["nodeName"])
    path = node.path(Path(Config().agent_dir) / identity.CERTIFICATE)
    own = x509.load_pem_x509_certificate(path.read_bytes())
    manager.stop()  # and with it the connection that it has
    path.write_bytes(certificates.sign(own.public_key(), (node.name,), *ca, ENDED))
    manager.start()
    try:
        apply_once_served(kubernetes, made("Checkpoint", name, podName=pod))
        status = grit.ended(kubernetes, "checkpoint", name, CHECKPOINTED)
    finally:
        node.run(["pkill", "-KILL", "-f", "grit agent run"])
    assert (status["phase"], status["reason"]) == (FAILED, "PeerUntrusted"), status
    assert f"the certificate of the agent of node {node.name} is not valid" in status["message"]
    assert "certificate has expired" in status["message"]

    def is_renewed() -> bool:
        return certificates.renew_at(path.read_bytes()) > certificates.renew_at(
            certificates.sign(own.public_key(), (node.name,), *ca, 1)
        )

    until("it has another", is_renewed)
    ready = ("--for=condition=Ready", "pods", "-l", agents.LABEL, "-n", names.NAMESPACE)
    kubernetes.wait(*ready)
    kubernetes.apply(made("Checkpoint", f"{name}-again", podName=pod))
    status = grit.ended(kubernetes, "checkpoint", f"{name}-again", CHECKPOINTED)
    assert status["phase"] == CHECKPOINTED, status


def test_a_manager_that_is_to_end_leads_no_longer_and_answers_for_a_moment_still(
    kubernetes: Cluster, manager: Manager, name: str
) -> None:
    def holder() -> str:
        lease = kubernetes.get("lease", names.MANAGER, "-n", names.NAMESPACE)
        return str(lease["spec"].get("holderIdentity", ""))

    pod = started(kubernetes, pods.counter(name))
    until("it leads", holder)
    ending = manager.pid
    os.kill(ending, signal.SIGTERM)
    until("it leads no longer", lambda: not holder())
    assert evict(kubernetes, pod, is_dry=True).startswith("Warning: pod default/")
    assert manager.pid == ending
    until("another leads", holder)
