"""Fixtures: an S3 server, and nodes that push to it and pull from it."""

from __future__ import annotations

import os

import pytest

from integration.stores import rclone
from integration.stores.commands import Commands

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from integration.stores.rclone import Server


@pytest.fixture(scope="session", autouse=True)
def as_root() -> None:
    """Commands get their checkpoint root by a mount."""
    if os.geteuid() != 0:
        pytest.skip("mounts need root; integration/test runs as root")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with rclone.serving(tmp_path / "s3") as server:
        yield server


@pytest.fixture
def source(server: Server, tmp_path: Path) -> Commands:
    """A node that pushes."""
    return Commands(tmp_path / "a", server.environment)


@pytest.fixture
def target(server: Server, tmp_path: Path) -> Commands:
    """A node that pulls."""
    return Commands(tmp_path / "b", server.environment)
