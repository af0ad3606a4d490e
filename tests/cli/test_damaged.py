"""grit verify and grit inspect, on a checkpoint with each of its files damaged in turn."""

from __future__ import annotations

import filecmp
import gzip
import os
import random
import shutil
import tarfile
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from grit_runtime.cli import main as cli
from grit_runtime.errors import GritError, one_line
from grit_runtime.files import checkpoint_dir, verified
from grit_runtime.model import manifest as manifests

GOLDENS = Path(__file__).parent.parent / "goldens"


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes() or b"\0")
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    path.write_bytes(data)


def cut(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randint(0, len(data))])


def splice(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    at = rng.randint(0, len(data))
    path.write_bytes(data[:at] + rng.randbytes(rng.randint(1, 64)) + data[at:])


def replace(path: Path, rng: random.Random) -> None:
    path.unlink()
    rng.choice((path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("/etc/passwd")))()


def remove(path: Path, _rng: random.Random) -> None:
    path.unlink()


def huge(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.choice((1 << 33, 1 << 40)))


DAMAGES = (flip, flip, flip, cut, cut, splice, replace, remove, huge)


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """A checkpoint of one container, whose images are real."""
    directory = tmp_path / "checkpoint"
    shutil.copytree(GOLDENS / "criu-4.2/root", directory / "main/checkpoint")
    for name in ("rootfs-diff.tar", "config.dump", "spec.dump", "container.log"):
        (directory / "main" / name).write_bytes(name.encode() * 100)
    manifest = manifests.for_foreign_dump(["main"], {})._replace(
        files=checkpoint_dir.contents(str(directory)), created="2026-01-01T00:00:00Z"
    )
    (directory / manifests.FILE_NAME).write_bytes(manifests.dump(manifest))
    return directory


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where it is recorded what was verified."""
    monkeypatch.setattr(verified, "DIR", str(tmp_path / "verified"))
    return tmp_path / "verified"


def told(*arguments: str) -> tuple[int, str]:
    """Exit status and output, as main() makes them of an error."""
    done = CliRunner().invoke(cli.grit, arguments)
    if isinstance(done.exception, GritError | OSError):
        return 1, one_line(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done.exit_code, done.output


def test_a_sound_checkpoint_is_as_sealed(sealed: Path) -> None:
    assert told("verify", str(sealed))[0] == 0
    assert "1 python3 (uid 0, 3 threads)" in told("inspect", str(sealed))[1]


def test_what_was_verified_is_recorded_until_it_is_seen_damaged(
    sealed: Path, records: Path
) -> None:
    told("verify", str(sealed))
    (record,) = records.iterdir()
    assert record.read_text().endswith(f" {sealed}\n")
    (sealed / "main/config.dump").write_bytes(b"damaged")
    assert told("verify", str(sealed))[0] == 1
    assert list(records.iterdir()) == []


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        (b'{"annotations": {"io.kubernetes.cri.container-name": "main"}}', "container main: "),
        (b"{}", "container _: "),
    ],
)
def test_an_archive_is_shown_as_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, spec: bytes, shown: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "unpacked"))
    (tmp_path / "unpacked").mkdir()
    (tmp_path / "spec.dump").write_bytes(spec)
    archive = tmp_path / f"exported.{suffix}"
    with tarfile.open(archive, "w") as tar:
        tar.add(GOLDENS / "criu-4.2/root", "checkpoint")
        tar.add(tmp_path / "spec.dump", "spec.dump")
    if suffix.endswith("gz"):
        archive.write_bytes(gzip.compress(archive.read_bytes(), compresslevel=1))
    status, text = told("inspect", str(archive))
    assert status == 0
    assert "of another program, without a manifest" in text
    assert shown in text
    assert "1 python3 (uid 0, 3 threads)" in text
    assert list((tmp_path / "unpacked").iterdir()) == []


@pytest.mark.parametrize("name", ["verify", "inspect"])
def test_no_damage_to_any_file_ends_in_a_traceback(sealed: Path, name: str) -> None:
    rng = random.Random(name)  # noqa: S311 -- the same damage in each run
    files = sorted(path for path in sealed.rglob("*") if path.is_file())
    pristine = sealed.with_name("pristine")
    shutil.copytree(sealed, pristine)
    for file in files:
        for damage in rng.sample(DAMAGES, 4):
            damage(file, rng)
            is_whole = file.is_file() and filecmp.cmp(
                file, pristine / file.relative_to(sealed), shallow=False
            )
            status, text = told(name, str(sealed))
            assert text.strip()
            if name == "verify" and not is_whole and file.name != manifests.FILE_NAME:
                assert status == 1, f"{damage.__name__} of {file}: {text}"
            _mend(sealed, pristine, file)


def _mend(sealed: Path, pristine: Path, file: Path) -> None:
    if file.is_dir():
        file.rmdir()
    file.unlink(missing_ok=True)
    shutil.copy(pristine / file.relative_to(sealed), file)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "\u202eb"])
def test_a_name_cannot_break_a_line_or_steer_the_terminal(sealed: Path, name: str) -> None:
    (sealed / "main" / name).touch()
    status, text = told("verify", str(sealed))
    assert status == 1
    assert text.rstrip("\n").isprintable()
    assert "is not in the manifest" in text
