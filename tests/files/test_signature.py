"""Who vouches for a manifest: what openssl signs is taken, and nothing else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from grit_runtime.errors import ImageError, InvalidArgumentError
from grit_runtime.files import checkpoint_dir, confine, signature

MANIFEST = b'{"version": 1}\n'


def key_pair(directory: Path, name: str, *, algorithm: str = "ed25519") -> tuple[str, str]:
    private, public = directory / f"{name}.pem", directory / f"{name}.pub"
    openssl("genpkey", "-algorithm", algorithm, "-out", str(private))
    openssl("pkey", "-in", str(private), "-pubout", "-out", str(public))
    return str(private), str(public)


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def test_one_of_several_trusted_keys_is_enough(tmp_path: Path) -> None:
    pairs = [key_pair(tmp_path, name) for name in ("first", "second")]
    trusted = tmp_path / "trusted.pem"
    trusted.write_text("".join(Path(public).read_text() for _, public in pairs))
    for private, _ in pairs:
        signature.check(MANIFEST, signature.sign(MANIFEST, private), str(trusted))


def test_openssl_agrees(tmp_path: Path) -> None:
    private, public = key_pair(tmp_path, "key")
    data, signed = tmp_path / "data", tmp_path / "data.sig"
    data.write_bytes(MANIFEST)
    openssl(
        *("pkeyutl", "-sign", "-rawin", "-inkey", private, "-in", str(data), "-out", str(signed))
    )
    signature.check(MANIFEST, signed.read_bytes(), public)
    assert signature.sign(MANIFEST, private) == signed.read_bytes()


@pytest.mark.parametrize("damage", ["manifest", "signature", "signer", "length"])
def test_any_other_signature_is_refused(tmp_path: Path, damage: str) -> None:
    private, public = key_pair(tmp_path, "key")
    stranger, _ = key_pair(tmp_path, "stranger")
    signed = signature.sign(MANIFEST, stranger if damage == "signer" else private)
    if damage == "signature":
        signed = bytes([signed[0] ^ 1]) + signed[1:]
    if damage == "length":
        signed = signed[:-1]
    data = MANIFEST + b" " * (damage == "manifest")
    with pytest.raises(ImageError, match=r"by none of the 1 keys in trusted_keys"):
        signature.check(data, signed, public)


def test_a_checkpoint_without_signature_is_refused(tmp_path: Path) -> None:
    _, public = key_pair(tmp_path, "key")
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    (directory / "manifest.json").write_bytes(MANIFEST)
    fd = confine.open_dir(str(directory))
    with pytest.raises(ImageError, match=r"^checkpoint x is not signed"):
        checkpoint_dir.check_signature(fd, "x", public)
    os.close(fd)


def test_keys_that_are_none_are_named_with_their_file(tmp_path: Path) -> None:
    rsa, rsa_public = key_pair(tmp_path, "rsa", algorithm="rsa")
    empty = tmp_path / "empty.pem"
    empty.touch()
    for path in (rsa_public, str(empty)):
        with pytest.raises(InvalidArgumentError, match=rf"^trusted_keys {path}: expected Ed25519"):
            signature.check(MANIFEST, bytes(64), path)
    for path in (rsa, str(empty)):
        with pytest.raises(InvalidArgumentError, match=rf"^signing_key {path}: "):
            signature.sign(MANIFEST, path)
