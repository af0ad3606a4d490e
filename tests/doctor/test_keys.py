"""Files of keys that the configuration names are read as they are when they are used."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from grit_runtime.config import Config
from grit_runtime.doctor import keys
from grit_runtime.doctor.finding import ABSENT, BROKEN, OK
from tests.doctor import nodes

if TYPE_CHECKING:
    from pathlib import Path

KEYS = ("signing_key", "trusted_keys", "store_key")


def made(directory: Path) -> dict[str, Any]:
    """A whole file for each."""
    paths: dict[str, Any] = {key: f"{directory}/{key}" for key in KEYS}
    for words in (
        ["genpkey", "-algorithm", "ed25519", "-out", paths["signing_key"]],
        ["pkey", "-in", paths["signing_key"], "-pubout", "-out", paths["trusted_keys"]],
        ["rand", "-hex", "-out", paths["store_key"], "32"],
    ):
        subprocess.run(["openssl", *words], check=True, capture_output=True)
    return paths


def test_nothing_is_looked_at_where_none_is_named() -> None:
    assert keys.keys(nodes.node()).verdict == ABSENT


def test_whole_ones_are_in_order(tmp_path: Path) -> None:
    found = keys.keys(nodes.node(config=Config(**made(tmp_path))))
    assert found.verdict == OK
    assert all(key in found.evidence for key in KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_one_that_is_missing_is_named(tmp_path: Path, key: str) -> None:
    paths = made(tmp_path) | {key: f"{tmp_path}/none"}
    found = keys.keys(nodes.node(config=Config(**paths)))
    assert found.verdict == BROKEN
    assert found.evidence == f"{key}: {tmp_path}/none: No such file or directory"
    assert key in found.remedy


@pytest.mark.parametrize("key", KEYS)
def test_one_that_is_no_key_is_named(tmp_path: Path, key: str) -> None:
    paths = made(tmp_path)
    (tmp_path / key).write_text("no key\n")
    found = keys.keys(nodes.node(config=Config(**paths)))
    assert found.verdict == BROKEN
    assert found.evidence.startswith(f"{key}: {paths[key]}: ")
    assert found.reason == "ConfigurationInvalid"


def test_each_that_is_broken_is_named(tmp_path: Path) -> None:
    paths: dict[str, Any] = {key: f"{tmp_path}/no-{key}" for key in KEYS}
    found = keys.keys(nodes.node(config=Config(**paths)))
    assert all(f"{key}: " in found.evidence for key in KEYS)
