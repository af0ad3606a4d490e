"""Who a node is among its peers: a certificate of a CA that all nodes know. EC P-256, X.509.

A directory has ca.pem, node.pem and node.key, and ca.key where certificates are made. Whoever has
a certificate of the CA may list and read the checkpoints of the other nodes.
"""

from __future__ import annotations

import datetime
import os
import re
import ssl

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

_CA_DAYS = 3650
_NODE_DAYS = 825
_SKEW = datetime.timedelta(minutes=10)  # the other node's clock may be slow
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
    x509, serialization = _cryptography()
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
        written += _make_ca(ca_dir)
    with open(f"{ca_dir}/{CA}", "rb") as file:
        ca_pem = file.read()
    try:
        with open(f"{ca_dir}/{CA_KEY}", "rb") as file:
            ca_key = serialization.load_pem_private_key(file.read(), password=None)
        ca = x509.load_pem_x509_certificate(ca_pem)
    except FileNotFoundError:
        raise FailedPreconditionError(
            f"{ca_dir} has {CA} and no {CA_KEY}, so no certificate can be made with it; make the "
            "node's where the CA was made, and copy it here"
        ) from None
    except ValueError as error:
        raise ConfigurationError(f"{ca_dir}: the CA means nothing: {error}") from None
    key = _new_key()
    signed = _signed_for(node, key.public_key(), ca, ca_key)
    if not os.path.lexists(f"{directory}/{CA}"):
        written.append(_write(f"{directory}/{CA}", ca_pem))
    written.append(_write(f"{directory}/{CERTIFICATE}", _pem(signed)))
    written.append(_write(f"{directory}/{KEY}", _pem(key)))
    return Made(tuple(written), f"{signed.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}")


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


def _make_ca(directory: str) -> list[str]:
    x509, _ = _cryptography()
    key = _new_key()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "grit agents")])
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    builder = _builder(name, name, key.public_key(), _CA_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    return [
        _write(f"{directory}/{CA}", _pem(_sign(builder, key))),
        _write(f"{directory}/{CA_KEY}", _pem(key)),
    ]


def _signed_for(node: str, public_key: Any, ca: Any, ca_key: Any) -> Any:
    x509, _ = _cryptography()
    name = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATIONAL_UNIT_NAME, "grit agent")])
    builder = _builder(name, ca.subject, public_key, _NODE_DAYS)
    usages = [x509.ExtendedKeyUsageOID.CLIENT_AUTH, x509.ExtendedKeyUsageOID.SERVER_AUTH]
    for extension, is_critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.SubjectAlternativeName([x509.DNSName(node)]), True),
        (x509.ExtendedKeyUsage(usages), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False),
    ):
        builder = builder.add_extension(extension, critical=is_critical)
    return _sign(builder, ca_key)


def _builder(subject: Any, issuer: Any, public_key: Any, days: int) -> Any:
    x509, _ = _cryptography()
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _sign(builder: Any, key: Any) -> Any:
    from cryptography.hazmat.primitives import hashes

    return builder.sign(key, hashes.SHA256())


def _new_key() -> Any:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _pem(thing: Any) -> bytes:
    """A certificate or a private key."""
    _, serialization = _cryptography()
    pem = serialization.Encoding.PEM
    if hasattr(thing, "public_bytes"):
        return bytes(thing.public_bytes(pem))
    plain = serialization.NoEncryption()
    return bytes(thing.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))


def _write(path: str, data: bytes) -> str:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "wb") as file:
        file.write(data)
    return path


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
    except ModuleNotFoundError:
        raise FailedPreconditionError(
            "certificates need the Python package cryptography; install grit-runtime[agent]"
        ) from None
    return x509, serialization
