"""Checkpoints in an S3 server's bucket."""

from __future__ import annotations

import json
import os

import pytest

from grit_runtime.errors import NotFoundError
from grit_runtime.store import backend, packs
from grit_runtime.store.objects import Objects
from grit_runtime.store.sending import MAX_THREADS
from integration.stores import rclone
from integration.stores.commands import Commands
from tests.store import made
from tests.store.made import MIB

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

    from integration.stores.rclone import Server

STORE = f"s3://{rclone.BUCKET}/some/prefix"


@pytest.fixture
def objects(server: Server, monkeypatch: pytest.MonkeyPatch) -> Objects:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return Objects(STORE)


def named(commands: Commands, name: str = "one", mib: int = 40) -> Path:
    """A checkpoint on that node."""
    files: dict[str, bytes | list[tuple[int, bytes]]] = {
        "main/pages": made.noise(mib * MIB, seed=len(name)),
        "main/log": made.text(5 * MIB),
    }
    return made.checkpoint(commands.root, name, files)


# When so much has been read, the pack of one thread at least is whole.
SOME_BYTES = (min(len(os.sched_getaffinity(0)) + 1, MAX_THREADS) + 1) * (
    Objects.pack_bytes + 4 * MIB
)


def sent_some(process: subprocess.Popen[str], at_least_bytes: int = 1) -> None:
    """Wait until a transfer that prints JSON has moved so much."""
    assert process.stderr is not None
    for line in process.stderr:
        if json.loads(line)["moved_bytes"] >= at_least_bytes:
            return
    raise AssertionError("it has ended")


@pytest.mark.parametrize("store", [STORE, f"s3://{rclone.BUCKET}"])
def test_a_checkpoint_goes_through_a_bucket(
    source: Commands, target: Commands, store: str, tmp_path: Path
) -> None:
    path = named(source)
    (tmp_path / "key").write_text("ab" * 32)
    key = ("--key-file", str(tmp_path / "key"))
    source.run("push", "default/one", store, *key)
    assert "default/one" in target.run("ls", store)
    target.run("pull", "default/one", store, *key)
    assert made.content(target.root / "default/one") == made.content(path)
    named(source, "other", 8)
    source.run("push", "default/other", store, *key)
    source.run("rm", "default/one", store, *key)
    assert "default/one" not in target.run("ls", store)
    assert "default/other" in target.run("gc", store, "--keep", "0", *key)
    (only,) = made.content(tmp_path / "s3" / rclone.BUCKET)
    assert only.endswith(backend.FORMAT_NAME)


@pytest.mark.parametrize(
    ("wrong", "store", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "guessed"}, STORE, "the credentials are wrong"),
        ({"AWS_ACCESS_KEY_ID": "guessed"}, STORE, "the credentials are wrong"),
        ({}, "s3://none/x", "s3://none does not exist; make the bucket first"),
        ({}, "s3://", "expected a directory, s3://BUCKET"),
        ({}, f"ftp://{rclone.BUCKET}/x", "expected a directory, s3://BUCKET"),
    ],
)
def test_what_is_wrong_is_one_line_that_tells_no_secret(
    server: Server, source: Commands, wrong: dict[str, str], store: str, said: str
) -> None:
    named(source, mib=1)
    line = Commands(source.root, {**server.environment, **wrong}).fails(
        "push", "default/one", store
    )
    assert said in line
    assert rclone.SECRET not in line
    assert "guessed" not in line
    assert "<" not in line
    source.run("push", "default/one", STORE)


def test_a_server_that_is_gone_in_the_middle_is_one_line_and_the_next_push_goes_on(
    server: Server, source: Commands, target: Commands, tmp_path: Path
) -> None:
    path = named(source, mib=SOME_BYTES * 2 // MIB)
    with source.start("push", "default/one", STORE, "--json") as pushing:
        sent_some(pushing, SOME_BYTES)
        server.kill()
        _, err = pushing.communicate(timeout=300)
    assert pushing.returncode == 1
    last = err.splitlines()[-1]
    assert last.startswith(f"grit: {STORE}/")
    assert "error sending request" in last
    assert rclone.SECRET not in err
    with rclone.serving(tmp_path / "s3") as again:
        out = Commands(source.root, again.environment).run("push", "default/one", STORE, "--json")
        assert json.loads(out)["reused_bytes"] > 0
        pulling = Commands(target.root, again.environment)
        with pulling.start("pull", "default/one", STORE, "--json") as killed:
            sent_some(killed)
            again.kill()
            _, err = killed.communicate(timeout=300)
        assert killed.returncode == 1
        assert f"grit: {STORE}/" in err.splitlines()[-1]
    with rclone.serving(tmp_path / "s3") as third:
        out = Commands(target.root, third.environment).run("pull", "default/one", STORE, "--json")
        assert json.loads(out)["received_bytes"] < SOME_BYTES * 2
    assert made.content(target.root / "default/one") == made.content(path)


def test_all_of_many_objects_are_listed(server: Server, objects: Objects) -> None:
    directory = server.directory / rclone.BUCKET / "some/prefix/packs/push"
    directory.mkdir(parents=True)
    for number in range(1100):
        (directory / str(number)).write_bytes(b"1234")
    listed = objects.listed("packs/")
    assert sorted(one.name for one in listed) == sorted(f"packs/push/{n}" for n in range(1100))
    assert {one.size_bytes for one in listed} == {4}
    assert objects.listed("packs/pu/") == []


def test_a_part_of_an_object_is_what_a_file_would_give(objects: Objects) -> None:
    data = made.noise(MIB)
    backend.put(objects, "packs/push/one", data)
    read = objects.read
    assert read("packs/push/one") == data
    assert read("packs/push/one", 5, 10) == data[5:15]
    assert read("packs/push/one", 5) == data[5:]
    assert read("packs/push/one", size_bytes=2 * MIB) == data
    assert read("packs/push/one", MIB - 5, 10) == data[-5:]
    assert read("packs/push/one", MIB, 10) == b""
    with pytest.raises(NotFoundError, match="has no packs/push/two"):
        read("packs/push/two")
    objects.remove("packs/push/one")
    objects.remove("packs/push/one")
    assert objects.listed("packs/") == []


def test_an_object_is_whole_or_absent(source: Commands, objects: Objects) -> None:
    stopped = pytest.raises(ValueError, match="stop")
    with stopped, objects.writing("packs/push/one") as file:
        file.write(b"half")
        raise ValueError("stop")
    assert objects.listed("") == []
    named(source, mib=200)
    with source.start("push", "default/one", STORE, "--json") as pushing:
        sent_some(pushing)
        os.kill(pushing.pid, 9)
    for pack in objects.listed("packs/"):
        assert packs.read_contents(objects, pack, None)
