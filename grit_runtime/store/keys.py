"""Encryption of what is in a store: AES-256-GCM with a data key of each push, wrapped by a file's.

The file holds 32 bytes, as they are or in hexadecimal; a mounted Kubernetes secret is such a file.
"""

from __future__ import annotations

import os
import re

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from grit_runtime.errors import ConfigurationError, TamperedError, WrongKeyError
from grit_runtime.model.stored import Key
from grit_runtime.wire.pack import NONCE_BYTES

_KEY_BYTES = 32
_WRAPPING = b"grit-runtime data key"


class FileKey:
    """The key in a file, which wraps data keys."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            data = file.read(_KEY_BYTES * 2 + 2)
        if re.fullmatch(rb"[0-9a-fA-F]{64}\s*", data):
            data = bytes.fromhex(data.decode())
        if len(data) != _KEY_BYTES:
            raise ConfigurationError(
                f"{path}: expected a key of {_KEY_BYTES} bytes, as they are or in hexadecimal; "
                "openssl rand -hex 32 makes one"
            )
        self.path = path
        self.id = blake3(b"grit-runtime key id" + data).hexdigest()[:16]
        self._cipher = AESGCM(data)

    def new_data_key(self) -> tuple[Key, DataKey]:
        data = os.urandom(_KEY_BYTES)
        nonce = os.urandom(NONCE_BYTES)
        return Key(self.id, nonce + self._cipher.encrypt(nonce, data, _WRAPPING)), DataKey(data)

    def unwrap(self, key: Key) -> DataKey:
        """The data key; WrongKeyError if another file's key has wrapped it."""
        if key.id != self.id:
            raise WrongKeyError(f"it is encrypted with key {key.id}; {self.path} has key {self.id}")
        nonce, wrapped = key.wrapped[:NONCE_BYTES], key.wrapped[NONCE_BYTES:]
        try:
            return DataKey(self._cipher.decrypt(nonce, wrapped, _WRAPPING))
        except (InvalidTag, ValueError):
            raise TamperedError(f"its data key was not wrapped with key {key.id}") from None


class DataKey:
    """What chunks are encrypted with."""

    def __init__(self, data: bytes) -> None:
        self._cipher = AESGCM(data)

    def encrypt(self, data: bytes | memoryview, bound_to: bytes) -> tuple[bytes, bytes]:
        """A nonce and the encrypted *data*, to be decrypted with the same *bound_to* only."""
        nonce = os.urandom(NONCE_BYTES)
        return nonce, self._cipher.encrypt(nonce, data, bound_to)

    def decrypt(self, nonce: bytes, data: bytes | memoryview, bound_to: bytes) -> bytes:
        try:
            return self._cipher.decrypt(nonce, data, bound_to)
        except (InvalidTag, ValueError):
            raise TamperedError("it was not encrypted with the checkpoint's key") from None
