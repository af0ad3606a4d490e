"""What goes wrong with a store in a directory: kills, full disks, two at once, what is not ours."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from contextlib import suppress

import pytest

from grit_runtime.store import backend, packs
from integration.stores.commands import Commands
from tests.store import made
from tests.store.made import MIB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KILLS = 40 if "GRIT_LONG" in os.environ else 4
SIZE_BYTES = 200 * MIB
DEAD_AFTER_S = 660


@pytest.fixture
def source(tmp_path: Path) -> Commands:
    """A node that pushes."""
    return Commands(tmp_path / "a")


@pytest.fixture
def target(tmp_path: Path) -> Commands:
    """A node that pulls."""
    return Commands(tmp_path / "b")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB."""
    disk = tmp_path / "small"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "none", disk], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    """A file system of 480 MiB on a disk of its own."""
    image, disk = tmp_path / "image", tmp_path / "ext4"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(512 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, disk], check=True)
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all that is left of *disk*."""
    with (disk / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(MIB))
    return disk / "filler"


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True)


def checkpoint(commands: Commands, name: str, size_bytes: int) -> Path:
    return made.checkpoint(commands.root, name, {"main/pages": made.noise(size_bytes)})


def killed(commands: Commands, moment: float, *words: str) -> None:
    """Kill the command at a *moment* from 0, its start, to 1, when it would about be done."""
    with commands.start(*words, "--json") as process:
        assert process.stderr is not None
        wanted_bytes = moment * SIZE_BYTES
        for line in process.stderr:
            if json.loads(line)["done_bytes"] >= wanted_bytes:
                break
        process.kill()


def age_locks(store: Path) -> None:
    """Let ten minutes pass for the locks that are there."""
    for lock in (store / "locks").glob("*"):
        long_ago = time.time() - DEAD_AFTER_S
        os.utime(lock, (long_ago, long_ago))


def whole_bytes(store: Path) -> int:
    """Bytes of chunks in the packs that are there."""
    opened = backend.open_store(str(store))
    listed = opened.listed("packs/")
    chunks = sum(len(packs.read_contents(opened, pack, None)) for pack in listed)
    return chunks * 4 * MIB


@pytest.mark.parametrize("seed", range(KILLS))
def test_what_is_killed_goes_on_and_sends_nothing_twice(
    source: Commands, target: Commands, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)  # noqa: S311  it is no secret
    store = tmp_path / "store"
    path = checkpoint(source, "one", SIZE_BYTES)
    killed(source, chance.random(), "push", "default/one", str(store))
    had_bytes = whole_bytes(store)
    pushed = json.loads(source.run("push", "default/one", str(store), "--json"))
    assert pushed["reused_bytes"] == had_bytes or pushed["was_there"]
    killed(target, chance.random(), "pull", "default/one", str(store))
    target.run("pull", "default/one", str(store))
    assert made.content(target.root / "default/one") == made.content(path)
    assert [entry.name for entry in (target.root / "default").iterdir()] == ["one"]
    age_locks(store)
    source.run("gc", str(store))
    left = {str(file.relative_to(store)) for file in store.rglob("*") if file.is_file()}
    assert {name.partition("/")[0] for name in left} == {"packs", "checkpoints", "grit-store.json"}
    assert not any("/." in name for name in left)
    assert whole_bytes(store) == SIZE_BYTES


def test_a_store_on_a_full_disk_is_one_line_and_gone_on_with(
    source: Commands, small_disk: Path
) -> None:
    checkpoint(source, "one", 100 * MIB)
    line = source.fails("push", "default/one", str(small_disk / "store"))
    assert f"store {small_disk}/store: its filesystem has become full; make room" in line
    assert "(NoRoom)" in line
    assert list(small_disk.rglob(".*")) == []
    enlarge(small_disk)
    source.run("push", "default/one", str(small_disk / "store"))


def test_a_node_without_room_receives_nothing(
    source: Commands, tmp_path: Path, small_disk: Path
) -> None:
    path = checkpoint(source, "one", 100 * MIB)
    source.run("push", "default/one", str(tmp_path / "store"))
    target = Commands(small_disk / "root")
    line = target.fails("pull", "default/one", str(tmp_path / "store"))
    assert "100 MiB have to be written" in line
    assert "make room (NoRoom)" in line
    enlarge(small_disk)
    target.run("pull", "default/one", str(tmp_path / "store"))
    assert made.content(target.root / "default/one") == made.content(path)


def test_a_pull_whose_disk_becomes_full_goes_on_when_there_is_room(
    source: Commands, tmp_path: Path, ext4: Path
) -> None:
    store, target = str(tmp_path / "store"), Commands(ext4 / "root")
    path = checkpoint(source, "one", 300 * MIB)
    source.run("push", "default/one", store)
    with target.start("pull", "default/one", store) as pulling:
        while not any(file.stat().st_blocks for file in ext4.rglob("*.pull/main/pages")):
            assert pulling.poll() is None
        pulling.send_signal(signal.SIGSTOP)
        try:
            filler = fill(ext4)
        finally:
            pulling.send_signal(signal.SIGCONT)
        _, line = pulling.communicate(timeout=120)
    assert pulling.returncode == 1
    assert line.startswith(
        "grit: checkpoint /mnt/grit-agent/default/one: its filesystem has become"
    )
    assert line.count("\n") == 1
    assert not (target.root / "default/one").exists()
    assert "(NoRoom)" in target.fails("pull", "default/one", store)
    filler.unlink()
    target.run("pull", "default/one", store)
    assert made.content(target.root / "default/one") == made.content(path)
    assert [entry.name for entry in (target.root / "default").iterdir()] == ["one"]


@pytest.mark.parametrize("disk", ["small_disk", "ext4"])
def test_a_store_whose_disk_is_full_is_read_and_collected(
    source: Commands, target: Commands, disk: str, request: pytest.FixtureRequest
) -> None:
    full: Path = request.getfixturevalue(disk)
    store = str(full / "store")
    path = checkpoint(source, "one", 10 * MIB)
    for name in ("one", "two"):
        checkpoint(source, name, 10 * MIB)
        source.run("push", f"default/{name}", store)
    filler = fill(full)
    checkpoint(source, "three", 20 * MIB)
    assert "(NoRoom)" in source.fails("push", "default/three", store)
    target.run("pull", "default/one", store)
    assert made.content(target.root / "default/one") == made.content(path)
    source.run("rm", "default/one", store)
    filler.unlink()
    source.run("push", "default/three", store)
    target.run("pull", "default/three", store)


def test_a_store_that_is_read_only_is_read(
    source: Commands, target: Commands, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    checkpoint(source, "one", MIB)
    checkpoint(source, "two", MIB)
    source.run("push", "default/one", str(store))
    subprocess.run(["mount", "--bind", "-o", "ro", store, store], check=True)
    try:
        assert "Read-only file system" in source.fails("push", "default/two", str(store))
        target.run("pull", "default/one", str(store))
        assert "default/one" in target.run("ls", str(store))
    finally:
        subprocess.run(["umount", "--lazy", store], check=True)


def test_a_collection_waits_for_nobody_who_has_died(source: Commands, tmp_path: Path) -> None:
    store = tmp_path / "store"
    checkpoint(source, "one", SIZE_BYTES)
    killed(source, 0.2, "push", "default/one", str(store))
    assert "in use: push of default/one on node" in source.fails("gc", str(store))
    age_locks(store)
    source.run("gc", str(store))
    assert list((store / "locks").glob("*")) == []


def test_a_push_outlasts_a_collection_at_the_same_time(
    source: Commands, target: Commands, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    checkpoint(source, "old", 5 * MIB)
    source.run("push", "default/old", store)
    path = checkpoint(source, "one", SIZE_BYTES)
    with source.start("push", "default/one", store) as pushing:
        collections = [source.start("gc", store) for _ in range(3)]
        told = [collection.communicate(timeout=120)[1] for collection in collections]
        _, err = pushing.communicate(timeout=120)
    assert pushing.returncode == 0, err
    assert all(line == "" or "is in use" in line for line in told)
    target.run("pull", "default/one", store)
    assert made.content(target.root / "default/one") == made.content(path)


def test_two_pulls_of_one_checkpoint_at_once_are_both_right(
    source: Commands, target: Commands, tmp_path: Path
) -> None:
    store = str(tmp_path / "store")
    path = checkpoint(source, "one", 60 * MIB)
    source.run("push", "default/one", store)
    both = [target.start("pull", "default/one", store, "--json") for _ in range(2)]
    told = [json.loads(process.communicate(timeout=120)[0]) for process in both]
    assert sorted(one["was_here"] for one in told) == [False, True]
    assert made.content(target.root / "default/one") == made.content(path)
    assert [entry.name for entry in (target.root / "default").iterdir()] == ["one"]


@pytest.mark.parametrize("name", ["../etc", "default/..", "default/a/b", "default/" + 300 * "a"])
def test_a_name_that_leads_elsewhere_is_refused(
    source: Commands, tmp_path: Path, name: str
) -> None:
    store = tmp_path / "store"
    checkpoint(source, "one", MIB)
    source.run("push", "default/one", str(store))
    for command in ("push", "pull", "rm"):
        assert "checkpoint name" in source.fails(command, name, str(store))


@pytest.mark.parametrize("at", ["directory", "file"])
def test_a_symlink_where_a_pull_writes_is_not_followed(
    source: Commands, target: Commands, tmp_path: Path, at: str
) -> None:
    store = tmp_path / "store"
    checkpoint(source, "one", 5 * MIB)
    sha256 = json.loads(source.run("push", "default/one", str(store), "--json"))["sha256"]
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "pages").write_text("precious")
    staging = target.root / "default" / f".one.{sha256[:16]}.pull"
    staging.parent.mkdir(parents=True)
    if at == "directory":
        staging.symlink_to(victim)
    else:
        (staging / "main").mkdir(parents=True)
        (staging / "main/pages").symlink_to(victim / "pages")
    assert "a symbolic link" in target.fails("pull", "default/one", str(store))
    assert made.content(victim) == {"pages": b"precious"}
