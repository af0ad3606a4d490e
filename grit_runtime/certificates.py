"""Making X.509 certificates: EC P-256, a CA and what it signs. Needs the package cryptography."""

from __future__ import annotations

import datetime
import ipaddress
from contextlib import suppress

from grit_runtime.errors import FailedPreconditionError, InvalidArgumentError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

CA_DAYS = 3650
_SKEW = datetime.timedelta(minutes=10)  # the other side's clock may be slow


def new_ca(name: str, days: float = CA_DAYS) -> tuple[bytes, bytes]:
    """A CA's certificate and its key, as PEM."""
    x509, _ = cryptography()
    key = new_key()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
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
    builder = _builder(subject, subject, key.public_key(), days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    return pem(_sign(builder, key)), pem(key)


def new_signed(
    names: Sequence[str], ca_pem: bytes, ca_key_pem: bytes, days: float
) -> tuple[bytes, bytes]:
    """A certificate for the *names*, which `alternative` describes, and its key, as PEM."""
    key = new_key()
    return sign(key.public_key(), names, ca_pem, ca_key_pem, days), pem(key)


def sign(
    public_key: Any, names: Sequence[str], ca_pem: bytes, ca_key_pem: bytes, days: float
) -> bytes:
    """A certificate of the CA for a key's owner, who serves and calls as the *names*.

    ValueError if the CA's certificate or key means nothing.
    """
    x509, serialization = cryptography()
    ca = x509.load_pem_x509_certificate(ca_pem)
    ca_key = serialization.load_pem_private_key(ca_key_pem, password=None)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATIONAL_UNIT_NAME, "grit")])
    usages = [x509.ExtendedKeyUsageOID.CLIENT_AUTH, x509.ExtendedKeyUsageOID.SERVER_AUTH]
    builder = _builder(subject, ca.subject, public_key, days)
    for extension, is_critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.SubjectAlternativeName(alternative(names)), True),
        (x509.ExtendedKeyUsage(usages), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), False),
    ):
        builder = builder.add_extension(extension, critical=is_critical)
    return pem(_sign(builder, ca_key))


def alternative(names: Sequence[str]) -> list[Any]:
    """The *names* as subjectAltName has them: as DNS names, and an address as such too.

    Whoever dials a node by its address compares that with addresses alone (RFC 9525).
    """
    x509, _ = cryptography()
    found = [x509.DNSName(name) for name in names]
    for name in names:
        with suppress(ValueError):  # it is no address
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
    return found


def requested(csr_pem: bytes) -> tuple[tuple[str, ...], Any]:
    """The DNS names and the public key of a request, which its key's owner has signed."""
    x509, _ = cryptography()
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        extension = request.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = tuple(extension.value.get_values_for_type(x509.DNSName))
    except (ValueError, x509.ExtensionNotFound) as error:
        raise InvalidArgumentError(f"the certificate request means nothing: {error}") from None
    if not request.is_signature_valid:
        raise InvalidArgumentError("the certificate request is not signed by its own key")
    return names, request.public_key()


def valid_until(certificate_pem: bytes) -> str:
    """When the certificate ends; RFC 3339, UTC."""
    x509, _ = cryptography()
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    return f"{certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"


def loaded(certificates_pem: bytes) -> list[Any]:
    """The certificates of a file, one or more; ValueError if it has none, or half of one."""
    x509, _ = cryptography()
    found: list[Any] = x509.load_pem_x509_certificates(certificates_pem)
    return found


def issuer(certificate: Any, cas: Sequence[Any]) -> Any:
    """The one of *cas* that has signed a certificate; None if none has."""
    return next((ca for ca in cas if _has_signed(ca, certificate)), None)


def _has_signed(ca: Any, certificate: Any) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):  # another's name, kind of key, or key
        return False
    return True


def renew_at(certificate_pem: bytes) -> datetime.datetime:
    """When two thirds of the certificate's life are over."""
    x509, _ = cryptography()
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    moment: datetime.datetime = begin + (end - begin) * 2 / 3
    return moment


def cryptography() -> tuple[Any, Any]:
    """Its modules x509 and serialization."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization
    except ModuleNotFoundError:
        raise FailedPreconditionError(
            "certificates need the Python package cryptography; install grit-runtime[agent]"
        ) from None
    return x509, serialization


def _builder(subject: Any, issuer: Any, public_key: Any, days: float) -> Any:
    x509, _ = cryptography()
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


def new_key() -> Any:
    """A private key of the kind that all certificates have."""
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def pem(thing: Any) -> bytes:
    """A certificate or a private key."""
    _, serialization = cryptography()
    encoding = serialization.Encoding.PEM
    if hasattr(thing, "public_bytes"):
        return bytes(thing.public_bytes(encoding))
    plain = serialization.NoEncryption()
    return bytes(thing.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain))
