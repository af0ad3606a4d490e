"""Who a node is among its peers: a certificate of a CA that all nodes know. EC P-256, X.509.

A directory has ca.pem, node.pem and node.key, and ca.key where certificates are made. Whoever has
a certificate of the CA may list and read the checkpoints of the other nodes.
"""

from __future__ import annotations

import os
import re
import ssl

from grit_runtime import certificates
from grit_runtime.errors import (
    AlreadyExistsError,
    ConfigurationError,
    FailedPreconditionError,
    InvalidArgumentError,
)
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DIR = "/etc/grit/agent"

CA, CA_KEY, CERTIFICATE, KEY = "ca.pem", "ca.key", "node.pem", "node.key"

_NODE_DAYS = 825
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_LIMIT = 63


class Made(NamedTuple):
    """What `make` has written."""

    paths: tuple[str, ...]
    valid_until: str  # the node's certificate; RFC 3339, UTC


def node_name(name: str) -> str:
    """*name* if a node can have it: that of a Kubernetes node, an RFC 1123 subdomain."""
    if not _NAME.fullmatch(name) or any(len(label) > _LABEL_LIMIT for label in name.split(".")):
        raise InvalidArgumentError(
            f"node name {name[:80]!r}: expected small letters, digits, '-' and '.', at most 253 of "
            "them, as kubectl get nodes shows it"
        )
    return name


def make(directory: str, node: str, ca_dir: str = "") -> Made:
    """A certificate and a key for *node* in *directory*, and a CA in *ca_dir* if that has none.

    AlreadyExistsError rather than to overwrite anything. All files are for root alone.
    """
    certificates.cryptography()  # before anything is written
    node_name(node)
    ca_dir = ca_dir or directory
    for name in (CERTIFICATE, KEY):
        if os.path.lexists(f"{directory}/{name}"):
            raise AlreadyExistsError(
                f"{directory}/{name} exists; remove it first if the node is to have another"
            )
    os.makedirs(directory, mode=0o700, exist_ok=True)
    os.makedirs(ca_dir, mode=0o700, exist_ok=True)
    written = []
    if not os.path.lexists(f"{ca_dir}/{CA}"):
        ca_pem, ca_key_pem = certificates.new_ca("grit agents")
        written += [write(f"{ca_dir}/{CA}", ca_pem), write(f"{ca_dir}/{CA_KEY}", ca_key_pem)]
    ca_pem = _read(f"{ca_dir}/{CA}")
    try:
        ca_key_pem = _read(f"{ca_dir}/{CA_KEY}")
        signed, key = certificates.new_signed((node,), ca_pem, ca_key_pem, _NODE_DAYS)
    except FileNotFoundError:
        raise FailedPreconditionError(
            f"{ca_dir} has {CA} and no {CA_KEY}, so no certificate can be made with it; make the "
            "node's where the CA was made, and copy it here"
        ) from None
    except ValueError as error:
        raise ConfigurationError(f"{ca_dir}: the CA means nothing: {error}") from None
    if not os.path.lexists(f"{directory}/{CA}"):
        written.append(write(f"{directory}/{CA}", ca_pem))
    written.append(write(f"{directory}/{CERTIFICATE}", signed))
    written.append(write(f"{directory}/{KEY}", key))
    return Made(tuple(written), certificates.valid_until(signed))


class Identity:
    """The node's own, read anew for each connection: certificates are replaced while agents run.

    ConfigurationError or OSError if the directory has none, at first or then.
    """

    def __init__(self, directory: str = DIR) -> None:
        self.directory = directory
        self.calling()

    def serving(self) -> ssl.SSLContext:
        return self._context(ssl.PROTOCOL_TLS_SERVER)

    def calling(self) -> ssl.SSLContext:
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    def _context(self, side: ssl._SSLMethod) -> ssl.SSLContext:
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        for name in (CA, CERTIFICATE, KEY):
            if not os.path.exists(f"{self.directory}/{name}"):
                raise ConfigurationError(
                    f"{self.directory} has no {name}; grit agent init makes it"
                )
        try:
            context.load_verify_locations(f"{self.directory}/{CA}")
            context.load_cert_chain(f"{self.directory}/{CERTIFICATE}", f"{self.directory}/{KEY}")
        except ssl.SSLError as error:
            raise ConfigurationError(
                f"{self.directory}: {CA}, {CERTIFICATE} and {KEY} do not go together: "
                f"{error.reason}; make them anew with grit agent init"
            ) from None
        return context


def name_in(certificate: dict[str, Any] | None) -> str:
    """The node that a verified certificate (ssl's getpeercert) is of."""
    for kind, value in (certificate or {}).get("subjectAltName", ()):
        if kind == "DNS":
            return str(value)
    return ""


def write(path: str, data: bytes) -> str:
    """Write a new file for root alone, which is on the medium when this returns; its path."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return path


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
