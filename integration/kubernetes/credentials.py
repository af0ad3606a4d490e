"""Who is who in a cluster: certificates of one CA, and kubeconfig files. EC P-256, X.509.

The API server takes a certificate's common name for the user and its organizations for the groups
(kubernetes.io, "Authenticating", X509 client certificates).
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import json
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

ADMINISTRATORS = "system:masters"
_VALID_FOR = datetime.timedelta(days=1)
_PEM = serialization.Encoding.PEM
_SIGNS = x509.KeyUsage(
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


class Credential(NamedTuple):
    """A certificate and its key, as PEM."""

    certificate: str
    key: str


class Authority:
    """A CA that lives as long as its cluster."""

    def __init__(self) -> None:
        self._key = new_key()
        self._name = _name("kubernetes", ())
        builder = _builder(self._name, self._name, self._key.public_key())
        # What Python 3.13 and newer insists on: OpenSSL's X509_V_FLAG_X509_STRICT.
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        builder = builder.add_extension(constraints, critical=True)
        builder = builder.add_extension(_SIGNS, critical=True)
        signed = builder.sign(self._key, hashes.SHA256())
        self.certificate = signed.public_bytes(_PEM).decode()

    def client(self, user: str, groups: Sequence[str] = ()) -> Credential:
        """What *user* shows to the API server."""
        return self._issue(_name(user, groups), ExtendedKeyUsageOID.CLIENT_AUTH, None)

    def server(self, names: Sequence[str], addresses: Sequence[str]) -> Credential:
        """What a server of those names and addresses shows to its clients."""
        found = [
            *(x509.DNSName(name) for name in names),
            *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses),
        ]
        usage = ExtendedKeyUsageOID.SERVER_AUTH
        return self._issue(_name("server", ()), usage, x509.SubjectAlternativeName(found))

    def _issue(
        self,
        subject: x509.Name,
        usage: x509.ObjectIdentifier,
        names: x509.SubjectAlternativeName | None,
    ) -> Credential:
        key = new_key()
        builder = _builder(subject, self._name, key.public_key())
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if names:
            builder = builder.add_extension(names, critical=False)
        signed = builder.sign(self._key, hashes.SHA256())
        return Credential(signed.public_bytes(_PEM).decode(), private_pem(key))


def kubeconfig(server: str, ca: str, user: dict[str, str]) -> str:
    """A kubeconfig file for *server*, whose CA's certificate is *ca*; JSON is YAML."""
    cluster = {"server": server, "certificate-authority-data": _base64(ca)}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": cluster}],
            "users": [{"name": "user", "user": user}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "user"}}],
            "current-context": "tests",
        }
    )


def by_certificate(credential: Credential) -> dict[str, str]:
    """The user of a kubeconfig file who has *credential*."""
    return {
        "client-certificate-data": _base64(credential.certificate),
        "client-key-data": _base64(credential.key),
    }


def new_key() -> ec.EllipticCurvePrivateKey:
    """A private key."""
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """*key*, in the one format that both Go and its users of old read."""
    plain = serialization.NoEncryption()
    return key.private_bytes(_PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain).decode()


def public_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """The public half of *key*."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(_PEM, form).decode()


def _name(user: str, groups: Sequence[str]) -> x509.Name:
    organizations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organizations, x509.NameAttribute(NameOID.COMMON_NAME, user)])


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + _VALID_FOR)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
