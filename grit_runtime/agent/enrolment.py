"""The node's certificate as the cluster gives it: asked for, waited for, renewed before it ends.

The manager signs it, for the node that the agent's pod runs on. The key is made here once and
stays. Spec: certificates.k8s.io/v1 CertificateSigningRequest; RFC 2986.
"""

from __future__ import annotations

import base64
import datetime
import os
from contextlib import suppress

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from grit_runtime import certificates, log
from grit_runtime.agent import identity
from grit_runtime.agent.identity import CA, CERTIFICATE, KEY
from grit_runtime.errors import (
    FailedPreconditionError,
    GritError,
    NotFoundError,
    ProtocolError,
    one_line,
)
from grit_runtime.host import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event
    from typing import Any

    from grit_runtime.agent.kubernetes import ApiServer

SIGNER = "grit.dev/agent"
CA_CONFIG_MAP, CA_FIELD = "grit-ca", "ca.pem"

_REQUESTS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
_LOOK_EVERY_S = 600.0  # whether the CA is another, or the certificate is to be renewed
_FIRST_S, _LAST_S = 0.25, 30.0  # between one try and the next, which is twice as long after


def keep(
    directory: str, node: str, api: ApiServer, ended: Event, ready: Callable[[], None]
) -> None:
    """Get and renew the node's certificate until *ended*; call *ready* once there is one.

    What does not work is a warning, and tried again.
    """
    identity.node_name(node)
    os.makedirs(directory, mode=0o700, exist_ok=True)
    is_ready = False
    pause_s = _FIRST_S
    while not ended.is_set():
        if not is_ready and _own(directory, node):
            ready()
            is_ready = True
        try:
            _renew(directory, node, api, ended)
        except (GritError, OSError) as error:
            log.warning("the node gets no certificate", node=node, reason=one_line(error))
            ended.wait(pause_s)
            pause_s = min(2 * pause_s, _LAST_S)
            continue
        pause_s = _FIRST_S
        if is_ready:
            ended.wait(min(_LOOK_EVERY_S, _seconds_left(directory, node)))


def _renew(directory: str, node: str, api: ApiServer, ended: Event) -> None:
    """Get another certificate, and the CA's, if that is due."""
    path = f"/api/v1/namespaces/{api.namespace}/configmaps/{CA_CONFIG_MAP}"
    ca_pem = str(api.get(path).get("data", {}).get(CA_FIELD, "")).encode()
    cas = _parsed(ca_pem, f"config map {CA_CONFIG_MAP}")
    chain_pem = b""
    if not (_is_of_any(_own(directory, node), cas) and _seconds_left(directory, node) > 0):
        key = _key(directory)
        chain_pem = _signed(_request(key, node), node, api, ended)
        if not chain_pem:
            return
        _require_right(_parsed(chain_pem, "the certificate")[0], node, key, cas)
    if _content(f"{directory}/{CA}") != ca_pem:
        _replace(f"{directory}/{CA}", ca_pem)
    if chain_pem:
        _replace(f"{directory}/{CERTIFICATE}", chain_pem)
        log.info("the node has a new certificate", node=node)


def _request(key: Any, node: str) -> bytes:
    builder = x509.CertificateSigningRequestBuilder()
    builder = builder.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)]))
    names = x509.SubjectAlternativeName(certificates.alternative((node,)))
    signed = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def _signed(request: bytes, node: str, api: ApiServer, ended: Event) -> bytes:
    """The certificate that the manager makes of the request; empty if the agent ends first."""
    name = f"grit-agent-{node}"[:200] + f"-{process.new_token()}"
    asked = {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {
            "signerName": SIGNER,
            "request": base64.b64encode(request).decode(),
            "usages": ["digital signature", "server auth", "client auth"],
        },
    }
    api.post(_REQUESTS, asked)
    log.info("the manager is asked for a certificate", request=name)
    pause_s = _FIRST_S
    while not ended.wait(pause_s):
        pause_s = min(2 * pause_s, _LAST_S)
        try:
            status = api.get(f"{_REQUESTS}/{name}").get("status", {})
        except NotFoundError:  # nobody has signed it for a day
            raise FailedPreconditionError(
                f"certificate signing request {name} is gone and was not signed; is the manager "
                "there?"
            ) from None
        for condition in status.get("conditions", ()):
            if condition["type"] in {"Denied", "Failed"}:
                raise FailedPreconditionError(
                    f"certificate signing request {name}: {condition['type']}, "
                    f"{condition.get('message', 'without a reason')}"
                )
        if certificate := status.get("certificate"):
            return base64.b64decode(certificate)
    return b""


def _require_right(certificate: x509.Certificate, node: str, key: Any, cas: Any) -> None:
    if not (_is_for(certificate, node) and certificate.public_key() == key.public_key()):
        raise ProtocolError(f"the certificate is not of node {node} and its key; look at who signs")
    if not _is_of_any(certificate, cas):
        raise ProtocolError(
            f"the certificate is not of the CA in config map {CA_CONFIG_MAP}; look at who signs"
        )


def _seconds_left(directory: str, node: str) -> float:
    """Until the certificate is to be renewed, at two thirds of its life; 0 if there is none."""
    own = _own(directory, node)
    if own is None:
        return 0.0
    life = own.not_valid_after_utc - own.not_valid_before_utc
    due = own.not_valid_before_utc + 2 * life / 3
    return max(0.0, (due - datetime.datetime.now(datetime.UTC)).total_seconds())


def _own(directory: str, node: str) -> x509.Certificate | None:
    """The certificate in the directory, if it is of the node and of the key there."""
    with suppress(FileNotFoundError, ValueError):  # one that was cut is none
        certificate = x509.load_pem_x509_certificate(_content(f"{directory}/{CERTIFICATE}"))
        key: Any = serialization.load_pem_private_key(_content(f"{directory}/{KEY}"), None)
        if _is_for(certificate, node) and certificate.public_key() == key.public_key():
            return certificate
    return None


def _is_for(certificate: x509.Certificate, node: str) -> bool:
    with suppress(x509.ExtensionNotFound):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return set(certificates.alternative((node,))) <= set(names)
    return False


def _is_of_any(certificate: x509.Certificate | None, cas: list[x509.Certificate]) -> bool:
    if certificate is None:
        return False
    for ca in cas:
        with suppress(ValueError, InvalidSignature):  # it is of another
            certificate.verify_directly_issued_by(ca)
            return True
    return False


def _key(directory: str) -> Any:
    with suppress(FileNotFoundError, ValueError):
        return serialization.load_pem_private_key(_content(f"{directory}/{KEY}"), None)
    key = certificates.new_key()
    _replace(f"{directory}/{KEY}", certificates.pem(key))
    return key


def _parsed(pem: bytes, where: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise ProtocolError(f"{where} has no certificate in PEM: {error}") from None


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _replace(path: str, data: bytes) -> None:
    with suppress(FileNotFoundError):
        os.unlink(f"{path}.new")  # of an agent that was killed
    identity.write(f"{path}.new", data)
    os.replace(f"{path}.new", path)
