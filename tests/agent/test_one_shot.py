"""grit agent --action, as upstream's manager runs it, on checkpoints that are taken already."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from grit_runtime.agent import one_shot
from grit_runtime.cli.main import grit
from grit_runtime.config import Config
from grit_runtime.errors import DamagedError, GritError, InvalidArgumentError
from grit_runtime.files import checkpoint_dir
from tests.store import made

if TYPE_CHECKING:
    from pathlib import Path

SENTINEL = {checkpoint_dir.SENTINEL: b"Transfer Completed\n"}
POD = one_shot.Pod(made.ROOT, "counter-0", "uid-1")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A sealed checkpoint on the node."""
    files: dict[str, bytes | list[tuple[int, bytes]]] = {
        "main/checkpoint/pages-1.img": made.noise(20 * made.MIB),
        "main/checkpoint/inventory.img": b"inventory",
        "main/rootfs-diff.tar": b"",
    }
    return made.checkpoint(tmp_path / "host", "one", files)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return tmp_path / "pvc-data" / made.ROOT / "one"


def run(action: str, source: Path, target: Path) -> None:
    argv = ["agent", "--action", action, "--src-dir", str(source), "--dst-dir", str(target)]
    argv += ["--host-work-path", str(source), "--v=5"]
    environment = {"TARGET_NAMESPACE": POD.namespace, "TARGET_NAME": POD.name}
    done = CliRunner().invoke(grit, argv, env=environment | {"TARGET_UID": POD.uid})
    if isinstance(done.exception, GritError):
        raise done.exception
    assert done.exit_code == 0, done.output


def test_a_checkpoint_goes_to_the_volume_and_back(source: Path, volume: Path) -> None:
    run("checkpoint", source, volume)
    whole = made.content(source)
    assert made.content(volume) == whole
    shutil.rmtree(source)
    source.mkdir()  # the job's mount
    run("restore", volume, source)
    assert made.content(source) == whole | SENTINEL


def test_a_job_that_is_run_again_copies_nothing_again(source: Path, volume: Path) -> None:
    run("checkpoint", source, volume)
    before = {path: path.stat().st_mtime_ns for path in volume.rglob("*")}
    run("checkpoint", source, volume)
    assert {path: path.stat().st_mtime_ns for path in volume.rglob("*")} == before


def test_what_was_taken_by_a_job_that_was_killed_is_not_taken_again(
    source: Path, volume: Path
) -> None:
    whole = made.content(source)
    left = source.with_name("left")
    source.rename(left)
    taken = source / ".grit" / made.ROOT / "one"
    taken.parent.mkdir(parents=True)
    left.rename(taken)
    (source / "main").mkdir()  # the move had begun
    run("checkpoint", source, volume)
    assert made.content(source) == whole
    assert made.content(volume) == whole


def test_a_damaged_checkpoint_is_not_said_to_be_there(
    source: Path, volume: Path, tmp_path: Path
) -> None:
    run("checkpoint", source, volume)
    with (volume / "main/checkpoint/pages-1.img").open("r+b") as file:
        file.seek(9 * made.MIB)
        file.write(b"damage")
    target = tmp_path / "other" / made.ROOT / "one"
    with pytest.raises(DamagedError, match=r"pages-1\.img is damaged"):
        run("restore", volume, target)
    assert not {"manifest.json", checkpoint_dir.SENTINEL} & made.content(target).keys()


def test_what_is_left_of_another_checkpoint_goes(source: Path, volume: Path) -> None:
    (volume / "main").mkdir(parents=True)
    (volume / "manifest.json").write_text("{}")
    (volume / "main/old").write_text("of another")
    (volume / checkpoint_dir.SENTINEL).write_text("Transfer Completed\n")
    run("checkpoint", source, volume)
    assert made.content(volume) == made.content(source)


def test_a_directory_with_anything_else_in_it_is_left_as_it_is(source: Path, volume: Path) -> None:
    volume.mkdir(parents=True)
    (volume / "letters").mkdir()
    (volume / "letters/dear").write_text("me")
    with pytest.raises(InvalidArgumentError, match="holds letters, which is not of the checkpoint"):
        run("checkpoint", source, volume)
    assert made.content(volume) == {"letters/dear": b"me"}


def test_a_checkpoint_of_upstream_s_agent_is_brought_too(source: Path, volume: Path) -> None:
    (source / "manifest.json").unlink()
    run("restore", source, volume)
    assert made.content(volume) == made.content(source) | SENTINEL


def test_another_pod_s_checkpoint_is_not_taken_for_this_one(source: Path, volume: Path) -> None:
    other = POD._replace(uid="uid-2")
    with pytest.raises(InvalidArgumentError, match=r"is a checkpoint of pod .*, uid uid-1"):
        one_shot.checkpoint(other, str(source), str(volume), Config())
    with pytest.raises(InvalidArgumentError, match="expected a pod of namespace default"):
        one_shot.checkpoint(POD._replace(namespace="x"), str(source), str(volume), Config())


@pytest.mark.parametrize("path", ["relative/default/one", "/one", "/", "/a/../one", "/a/b c"])
def test_a_directory_has_to_end_in_a_namespace_and_a_name(path: str, source: Path) -> None:
    with pytest.raises(InvalidArgumentError):
        one_shot.restore(str(source), path)


def test_half_of_the_flags_are_a_wrong_usage() -> None:
    for argv in (["agent"], ["agent", "--action", "restore"], ["agent", "--action", "else"]):
        assert CliRunner().invoke(grit, argv).exit_code == 2
