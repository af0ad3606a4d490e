"""Records of verified checkpoints: they hold for an unchanged directory alone."""

from __future__ import annotations

import os
import shutil
import stat
import time

import pytest

from grit_runtime.files import checkpoint_dir, verified
from grit_runtime.host import linux
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import manifest as manifests
from tests.host.test_changes import kinds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

COARSE = 5  # the clock's number
NAMES = ("default", "nightly")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint root, with one checkpoint."""
    monkeypatch.setattr(verified, "DIR", str(tmp_path / "verified"))
    seal(tmp_path / "root/default/nightly")
    return tmp_path / "root"


def seal(directory: Path, content: str = "a page") -> None:
    (directory / "main").mkdir(parents=True)
    (directory / "main/pages-1.img").write_text(content)
    files = checkpoint_dir.contents(str(directory))
    sealed = manifests.for_foreign_dump([], {})._replace(files=files)
    (directory / "manifest.json").write_bytes(manifests.dump(sealed))


def sha256(directory: Path) -> str:
    with closing_fd(os.open(directory, os.O_RDONLY)) as dir_fd:
        return checkpoint_dir.read_manifest(dir_fd, str(directory)).sha256


def holds(directory: Path, path: str = "") -> bool:
    with closing_fd(os.open(directory, os.O_RDONLY)) as dir_fd:
        return verified.holds(dir_fd, path or str(directory), sha256(directory))


def test_a_record_holds_until_it_is_forgotten(root: Path, tmp_path: Path) -> None:
    nightly = root / "default/nightly"
    assert not holds(nightly)
    verified.record(str(root), *NAMES)
    assert holds(nightly)
    (file,) = (tmp_path / "verified").iterdir()
    assert file.name == sha256(nightly)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    verified.forget(sha256(nightly))
    verified.forget(sha256(nightly))
    assert not holds(nightly)


def damage(path: Path) -> None:
    """Change a byte, and put back all that can be put back."""
    before = path.stat()
    path.write_text("a pagE")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "a byte": lambda directory: damage(directory / "main/pages-1.img"),
    "a mode": lambda directory: (directory / "main").chmod(0o777),
    "the directory's mode": lambda directory: directory.chmod(0o777),
    "an owner": lambda directory: os.chown(directory / "main", 1000, 0),
    "a new file": lambda directory: (directory / "main/new").touch(),
    "a new directory": lambda directory: (directory / "new").mkdir(),
    "a name": lambda directory: (directory / "main").rename(directory / "other"),
    "a link": lambda directory: (directory / "main/link").symlink_to("pages-1.img"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_ends_it(root: Path, change: str) -> None:
    verified.record(str(root), *NAMES)
    CHANGES[change](root / "default/nightly")
    assert not holds(root / "default/nightly")


def test_a_change_right_before_or_after_the_record_is_seen(root: Path) -> None:
    """Before Linux 6.13 files have their times of a clock that stands for milliseconds."""
    nightly = root / "default/nightly"
    for _ in range(20):
        (nightly / "main/pages-1.img").write_text("a page")
        verified.record(str(root), *NAMES)
        next_ns = time.clock_gettime_ns(COARSE)
        assert next_ns > (nightly / "main/pages-1.img").stat().st_ctime_ns
        assert holds(nightly)
        damage(nightly / "main/pages-1.img")
        assert not holds(nightly)


def test_a_copy_elsewhere_is_not_recorded(root: Path, tmp_path: Path) -> None:
    nightly = root / "default/nightly"
    verified.record(str(root), *NAMES)
    shutil.copytree(nightly, tmp_path / "copy")
    assert not holds(tmp_path / "copy", path=str(nightly))
    assert not holds(nightly, path=str(tmp_path / "copy"))


def test_a_directory_may_be_recorded_before_it_has_its_name(root: Path) -> None:
    staged, name = root / "default/.staged", root / "default/weekly"
    seal(staged)
    with closing_fd(os.open(staged, os.O_RDONLY)) as dir_fd:
        verified.keep(dir_fd, str(name), verified.fingerprint(dir_fd))
    staged.rename(name)
    assert holds(name)


def test_the_sentinel_may_come_later(root: Path) -> None:
    verified.record(str(root), *NAMES)
    with closing_fd(os.open(root / "default/nightly", os.O_RDONLY)) as dir_fd:
        checkpoint_dir.write_sentinel(dir_fd)
    assert holds(root / "default/nightly")


def test_what_changed_while_it_was_verified_is_not_recorded(root: Path) -> None:
    nightly = root / "default/nightly"
    with closing_fd(os.open(nightly, os.O_RDONLY)) as dir_fd:
        before = verified.fingerprint(dir_fd)
        damage(nightly / "main/pages-1.img")
        verified.keep(dir_fd, str(nightly), before)
    assert not holds(nightly)


@pytest.mark.parametrize("place", ["", "default", "default/nightly", "default/nightly/main"])
def test_what_others_can_change_is_not_recorded(root: Path, place: str) -> None:
    (root / place).chmod(0o777)
    verified.record(str(root), *NAMES)
    assert not holds(root / "default/nightly")


def test_what_is_of_the_future_is_not_recorded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time_ns", lambda: time.clock_gettime_ns(0) - 10**10)
    verified.record(str(root), *NAMES)
    assert not holds(root / "default/nightly")


def test_what_is_on_a_network_filesystem_is_not_recorded(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linux, "_SHARED_FILESYSTEMS", kinds(root))
    verified.record(str(root), *NAMES)
    assert not holds(root / "default/nightly")


def test_records_of_what_is_gone_or_replaced_are_dropped(root: Path, tmp_path: Path) -> None:
    seal(root / "default/gone", "other pages")
    seal(root / "default/kept", "kept pages")
    for name in ("nightly", "gone", "kept"):
        verified.record(str(root), "default", name)
    assert len(list((tmp_path / "verified").iterdir())) == 3
    shutil.rmtree(root / "default/gone")
    shutil.rmtree(root / "default/nightly")
    seal(root / "default/nightly", "newer pages")
    verified.record(str(root), *NAMES)
    directories = [root / "default/kept", root / "default/nightly"]
    assert {path.name for path in (tmp_path / "verified").iterdir()} == set(
        map(sha256, directories)
    )
    assert all(map(holds, directories))
