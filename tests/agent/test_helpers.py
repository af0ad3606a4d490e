"""Processes beside the agent's, which move bytes where there are cores for them."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from grit_runtime.agent import helpers, peers
from grit_runtime.agent.peers import Address
from grit_runtime.agent.serving import listening_at
from grit_runtime.errors import CommandError, DamagedError, RoomError
from grit_runtime.store.pull import bring
from tests.agent import nodes
from tests.store import made

if TYPE_CHECKING:
    from collections.abc import Iterator

    from grit_runtime.agent.identity import Identity

SIZE_BYTES = 20 * made.MIB


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine on which processes of their own are worth having."""
    monkeypatch.setattr(helpers, "_FEW_CORES", 1)
    monkeypatch.setattr(helpers, "_FEW_BYTES", 0)


@pytest.fixture
def own(tmp_path: Path) -> Identity:
    return nodes.certified(tmp_path, "node-b")


@pytest.fixture
def apart(tmp_path: Path) -> Iterator[Address]:
    """A peer of which only the processes beside it answer."""
    (tmp_path / "a").mkdir()
    theirs = nodes.certified(tmp_path, "node-a")
    with (
        listening_at(0, nodes.HOST) as listening,
        helpers.serving(listening, str(tmp_path / "a"), theirs.directory, 2),
    ):
        yield Address("node-a", nodes.HOST, listening.getsockname()[1])


@pytest.mark.usefixtures("many_cores")
def test_what_processes_bring_is_what_the_peer_has(
    apart: Address, own: Identity, tmp_path: Path
) -> None:
    files: dict[str, bytes | list[tuple[int, bytes]]] = {
        "main/checkpoint/pages-1.img": made.noise(SIZE_BYTES, 1),
        "main/checkpoint/parent/pages-1.img": made.noise(SIZE_BYTES + 1, 2),
        "main/checkpoint/zeros.img": bytes(SIZE_BYTES),
        "main/checkpoint/core-1.img": b"core",
    }
    path = made.checkpoint(tmp_path / "a", "one", files)
    entry, _ = peers.find(apart, own, made.ROOT, "one")
    with peers.PeerSource(apart, own, entry) as source:
        done = bring(source, entry, str(tmp_path / "b"), made.ignore)
    assert made.content(tmp_path / "b" / made.ROOT / "one") == made.content(path)
    assert done.received_bytes == 2 * SIZE_BYTES + 1 + len(b"core")


@pytest.mark.usefixtures("many_cores")
def test_what_goes_wrong_in_a_process_is_raised_here(
    apart: Address, own: Identity, tmp_path: Path
) -> None:
    path = made.checkpoint(tmp_path / "a", "one", {"main/pages": made.noise(SIZE_BYTES, 1)})
    entry, _ = peers.find(apart, own, made.ROOT, "one")
    with (path / "main/pages").open("r+b") as file:
        file.write(b"damaged")
    with (
        peers.PeerSource(apart, own, entry) as source,
        pytest.raises(DamagedError, match="peer node-a: main/pages"),
    ):
        bring(source, entry, str(tmp_path / "b"), made.ignore)


@pytest.mark.usefixtures("many_cores")
def test_a_process_that_is_killed_fails_the_pull(
    apart: Address, own: Identity, tmp_path: Path
) -> None:
    made.checkpoint(tmp_path / "a", "one", {"main/pages": made.noise(5 * SIZE_BYTES, 1)})
    entry, _ = peers.find(apart, own, made.ROOT, "one")
    killed = False

    def told(_done: int, _moved: int) -> None:
        nonlocal killed
        if not killed:
            killed = True
            for pid in children():
                os.kill(pid, signal.SIGKILL)

    with peers.PeerSource(apart, own, entry) as source, pytest.raises(CommandError):
        bring(source, entry, str(tmp_path / "b"), told)
    with peers.PeerSource(apart, own, entry) as source:
        bring(source, entry, str(tmp_path / "b"), made.ignore)


@pytest.mark.usefixtures("many_cores")
def test_a_disk_that_becomes_full_meanwhile_is_said_to_be(
    apart: Address, own: Identity, tmp_path: Path
) -> None:
    memory = {"main/checkpoint/parent/pages-1.img": made.noise(SIZE_BYTES, 1)}
    made.checkpoint(tmp_path / "a", "one", {**memory, "main/core.img": b"core"})
    entry, _ = peers.find(apart, own, made.ROOT, "one")
    small = tmp_path / "b"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", small], check=True)
    try:
        with (
            peers.PeerSource(apart, own, entry) as source,
            pytest.raises(RoomError, match="checkpoint default/one: its filesystem has become fu"),
        ):
            bring(source, entry, str(small), made.ignore, announced=Filling(small / "other"))
    finally:
        subprocess.run(["umount", small], check=True)


class Filling(NamedTuple):
    """Fills the disk when all but memory is there."""

    path: Path

    def is_ready(self, _directory: str) -> None:
        with suppress(OSError), self.path.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(made.MIB))

    def is_whole(self) -> None:
        pytest.fail("there was no room for it")


def children() -> list[int]:
    """Our processes that bring chunks."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
            parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
        if parent == os.getpid() and b'"receive"' in line:
            found.append(int(path.parent.name))
    return found
