"""The detached signature of a manifest. Ed25519, keys in PEM files.

Imported only where the configuration names a key; the package cryptography is an extra.
"""

from __future__ import annotations

import re
from typing import Any

from grit_runtime.errors import (
    ConfigurationError,
    FailedPreconditionError,
    ImageError,
)

_PUBLIC_KEY = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)


def sign(data: bytes, key_path: str) -> bytes:
    """The signature of *data*, 64 bytes, by the private key in *key_path*."""
    ed25519, serialization = _cryptography()
    with open(key_path, "rb") as file:
        text = file.read()
    try:
        key = serialization.load_pem_private_key(text, password=None)
    except (ValueError, TypeError) as error:  # TypeError: the key needs a password
        raise ConfigurationError(f"signing_key {key_path}: {error}") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise ConfigurationError(f"signing_key {key_path}: expected an Ed25519 key")
    return bytes(key.sign(data))


def check(data: bytes, signature: bytes, keys_path: str) -> None:
    """ImageError unless one of the public keys in *keys_path* made the signature of *data*."""
    keys = _public_keys(keys_path)
    for key in keys:
        if _is_by(key, signature, data):
            return
    raise ImageError(
        f"its signature is by none of the {len(keys)} keys in trusted_keys {keys_path}; "
        "take the checkpoint where a trusted key signs it, or add the signer's key"
    )


def _public_keys(path: str) -> list[Any]:
    ed25519, serialization = _cryptography()
    with open(path, "rb") as file:
        blocks = _PUBLIC_KEY.findall(file.read())
    try:
        keys = [serialization.load_pem_public_key(block) for block in blocks]
    except ValueError as error:
        raise ConfigurationError(f"trusted_keys {path}: {error}") from None
    if not keys or not all(isinstance(key, ed25519.Ed25519PublicKey) for key in keys):
        raise ConfigurationError(f"trusted_keys {path}: expected Ed25519 public keys in PEM")
    return keys


def _is_by(key: Any, signature: bytes, data: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, data)
    except InvalidSignature:
        return False
    return True


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError:
        raise FailedPreconditionError(
            "signatures need the Python package cryptography; install grit-runtime[signing]"
        ) from None
    return ed25519, serialization
