"""Announcements of checkpoints: what a reader sees while their writer lives, fails, is killed."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager

import pytest

from grit_runtime.errors import (
    AlreadyExistsError,
    CancelledError,
    FailedPreconditionError,
    ImageError,
)
from grit_runtime.files import arrivals
from tests import forked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ROOT = "/mnt/grit-agent"
SHA256 = "5" * 64
NIGHTLY = (ROOT, "default", "nightly")
DAY_S = 24 * 60 * 60


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(arrivals, "DIR", str(tmp_path / "arrivals"))
    return tmp_path / "arrivals/default/nightly"


@contextmanager
def another_process(work: Callable[[], object]) -> Iterator[int]:
    """The pid of a child that announces "nightly", does *work* and waits to be killed."""
    read_fd, write_fd = os.pipe()

    def announce() -> object:
        announced = arrivals.announced(*NIGHTLY, SHA256, 1000, "peer node-b")
        announced.__enter__()
        work()
        os.close(write_fd)
        return announced

    with forked.child(announce) as pid:
        os.close(write_fd)
        with open(read_fd, "rb") as told:
            told.read()
        yield pid


def age(directory: Path) -> None:
    """Make an announcement more than a day old."""
    for path in (directory / "announcement.json", directory):
        os.utime(path, (path.stat().st_mtime - DAY_S - 10,) * 2)


def test_an_announcement_lasts_as_long_as_its_block(directory: Path) -> None:
    assert arrivals.of(*NIGHTLY) is None
    with arrivals.announced(*NIGHTLY, SHA256, 1000, "peer node-b"):
        found = arrivals.of(*NIGHTLY)
        assert found is not None
        assert found[:4] == (f"{ROOT}/default/nightly", SHA256, "peer node-b", 1000)
        assert arrivals.is_alive("default", "nightly")
        for path in (directory, directory.parent, directory.parent.parent):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert stat.S_IMODE((directory / "announcement.json").stat().st_mode) == 0o600
    assert arrivals.of(*NIGHTLY) is None
    assert not directory.exists()


def test_one_below_another_root_is_none() -> None:
    with arrivals.announced(*NIGHTLY, SHA256, 1000, "peer node-b"):
        assert arrivals.of("/srv", "default", "nightly") is None


def test_progress_is_told_twice_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    seen = []
    with arrivals.announced(*NIGHTLY, SHA256, 1000, "peer node-b") as arrival:
        for arrived_bytes, clock[0] in enumerate((100.1, 100.5, 100.6, 101.0), start=1):
            arrival.tell(arrived_bytes)
            found = arrivals.of(*NIGHTLY)
            assert found is not None
            seen.append(found.arrived_bytes)
    assert seen == [1, 1, 3, 3]


def test_one_that_fails_stays_and_says_why() -> None:
    def bring() -> None:
        with arrivals.announced(*NIGHTLY, SHA256, 1000, "peer\nnode-b") as arrival:
            arrival.tell(700)
            raise ImageError("piece 7\nis damaged")

    with pytest.raises(ImageError):
        bring()
    found = arrivals.of(*NIGHTLY)
    assert found is not None
    assert (found.failed, found.arrived_bytes) == ("piece 7?is damaged", 700)
    assert found.source == "peer?node-b"
    assert not arrivals.is_alive("default", "nightly")
    with arrivals.announced(*NIGHTLY, SHA256, 1000, "peer node-b"):
        again = arrivals.of(*NIGHTLY)
        assert again is not None
        assert again.failed == ""


def test_one_that_is_cancelled_is_withdrawn(directory: Path) -> None:
    def bring() -> None:
        with arrivals.announced(*NIGHTLY, SHA256, 1000, "peer node-b"):
            raise CancelledError("job 1 was cancelled")

    with pytest.raises(CancelledError):
        bring()
    assert arrivals.of(*NIGHTLY) is None
    assert not directory.exists()


def test_one_whose_writer_is_killed_stays_without_its_lock() -> None:
    with another_process(lambda: None):
        assert arrivals.is_alive("default", "nightly")
        with (
            pytest.raises(AlreadyExistsError, match="default/nightly is on its way to this node"),
            arrivals.announced(*NIGHTLY, SHA256, 1000, "a store"),
        ):
            pass
    assert not arrivals.is_alive("default", "nightly")
    assert arrivals.of(*NIGHTLY) is not None
    with arrivals.announced(*NIGHTLY, SHA256, 1000, "a store"):
        assert arrivals.is_alive("default", "nightly")


def test_a_dead_one_is_forgotten_after_a_day(directory: Path) -> None:
    with another_process(lambda: None):
        age(directory)
        assert arrivals.of(*NIGHTLY) is not None
    assert arrivals.of(*NIGHTLY) is None
    assert directory.exists()
    with arrivals.announced(ROOT, "default", "other", SHA256, 1000, "a store"):
        assert not directory.exists()


def test_a_living_one_is_not_removed_for_its_age(directory: Path) -> None:
    with another_process(lambda: None):
        age(directory)
        with arrivals.announced(ROOT, "default", "other", SHA256, 1000, "a store"):
            assert directory.exists()


def test_a_file_that_is_no_announcement_is_named(directory: Path) -> None:
    with arrivals.announced(*NIGHTLY, SHA256, 1000, "peer node-b"):
        (directory / "announcement.json").write_text("{}")
        with pytest.raises(FailedPreconditionError, match=r"announcement /.*json: expected the f"):
            arrivals.of(*NIGHTLY)


@pytest.mark.parametrize("name", ["a" * 253, "b" * 255])
def test_every_name_of_a_checkpoint_can_be_announced(name: str) -> None:
    assert arrivals.of(ROOT, "default", name) is None
    with arrivals.announced(ROOT, "default", name, SHA256, 1000, "peer node-b"):
        assert arrivals.of(ROOT, "default", name) is not None
