"""Agents in a cluster: who signs their certificates in the manager's place, and calling them."""

from __future__ import annotations

import base64
import datetime
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from grit_runtime.agent import identity
from integration.node import images
from integration.node.node import RUNTIME_CONFIG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from google.protobuf.message import Message

    from integration.kubernetes.cluster import Cluster

NAMESPACE = "grit-system"
EVERYTHING = {"apiGroups": ["kaito.sh"], "resources": ["checkpoints"], "verbs": ["*"]}
TIMEOUT_S = 60
CHECKPOINTS = Path("/mnt/grit-agent/default")
OLDER = RUNTIME_CONFIG / "kubernetes-older"

_REQUESTS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
_CALLER = Path(__file__).with_name("agent_caller.py")


def objects(cluster: Cluster) -> list[dict[str, Any]]:
    """What installs the agents, without a manager."""
    rendered = yaml.safe_load_all(cluster.kubectl("kustomize", OLDER).stdout)
    names = (NAMESPACE, "grit-agent")
    return [here(one) for one in rendered if one["metadata"]["name"] in names]


def here(one: dict[str, Any]) -> dict[str, Any]:
    """An object as it is applied here, where there is another image for the agents' pods."""
    if one["kind"] == "DaemonSet":
        (container,) = one["spec"]["template"]["spec"]["containers"]
        container["image"] = images.BUSYBOX
        # This machine's root may not have it.
        container["securityContext"]["capabilities"]["add"].remove("SYS_RESOURCE")
    return one


class Answer(NamedTuple):
    """Of an agent to a call: gRPC's code, and what there is of the rest."""

    code: str
    text: str
    reason: str
    messages: list[bytes]
    serial: int  # of the certificate that it has shown


class Signer:
    """The CA of a cluster's agents."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self._cluster = cluster
        identity.make(str(directory), "unused", str(directory))
        self.ca_pem = (directory / identity.CA).read_bytes()
        self._ca = x509.load_pem_x509_certificate(self.ca_pem)
        key = (directory / identity.CA_KEY).read_bytes()
        self._key: Any = serialization.load_pem_private_key(key, None)
        self.publish()

    def publish(self) -> None:
        """Have the agents find this CA."""
        config_map = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "grit-ca", "namespace": NAMESPACE},
            "data": {"ca.pem": self.ca_pem.decode()},
        }
        self._cluster.apply(config_map)

    def waiting(self) -> list[dict[str, Any]]:
        """The agents' requests that nobody has decided on, oldest first."""
        found = self._cluster.get("certificatesigningrequests")["items"]
        return [
            one
            for one in found
            if one["spec"]["signerName"] == "grit.dev/agent" and not one["status"]
        ]

    def next(self) -> dict[str, Any]:
        """The oldest of them, once there is one."""
        deadline = time.monotonic() + TIMEOUT_S
        while not (found := self.waiting()):
            assert time.monotonic() < deadline, "no agent asks for a certificate"
            time.sleep(0.1)
        return found[0]

    def sign(self, request: dict[str, Any], valid_s: float = 3600) -> int:
        """Approve a request, and sign what it asks for; the certificate's serial number."""
        name = request["metadata"]["name"]
        self._cluster.kubectl("certificate", "approve", name)
        asked = x509.load_pem_x509_csr(base64.b64decode(request["spec"]["request"]))
        names = asked.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(asked.subject)
            .issuer_name(self._ca.subject)
            .public_key(asked.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(seconds=1))
            .not_valid_after(now + datetime.timedelta(seconds=valid_s))
            .add_extension(names, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        signed = self._cluster.get("certificatesigningrequest", name)
        signed["status"]["certificate"] = base64.b64encode(pem).decode()
        path = f"{_REQUESTS}/{name}/status"
        self._cluster.kubectl("replace", "--raw", path, "-f", "-", input=json.dumps(signed))
        return certificate.serial_number


def token(
    cluster: Cluster,
    account: str,
    namespace: str,
    *,
    audience: str = "",
    pod: dict[str, Any] | None = None,
) -> str:
    """A token of a ServiceAccount, for an audience and bound to a *pod* if there is one."""
    spec: dict[str, Any] = {"audiences": [audience]} if audience else {}
    if pod:
        metadata = pod["metadata"]
        spec["boundObjectRef"] = {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
    answer = cluster.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(request))
    made: str = json.loads(answer.stdout)["status"]["token"]
    return made


def call(
    cluster: Cluster,
    address: str,
    method: str,
    request: Message,
    *,
    node: str,
    ca_pem: bytes,
    token: str = "",
) -> Answer:
    """Call the agent at *address* from beside the control plane, as the manager does."""
    asked = {
        "address": address,
        "node": node,
        "ca": ca_pem.decode(),
        "method": method,
        "request": request.SerializeToString().hex(),
        "token": token,
    }
    done = subprocess.run(
        [*cluster.plane.enter_argv(), sys.executable, str(_CALLER)],
        input=json.dumps(asked),
        capture_output=True,
        check=True,
        text=True,
    )
    answer = json.loads(done.stdout)
    messages = [bytes.fromhex(one) for one in answer.pop("messages")]
    return Answer(messages=messages, **answer)
