import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from grit_runtime.errors import FailedPreconditionError
from grit_runtime.host import journal
from grit_runtime.host.journal import Journal
from grit_runtime.model.checkpoint_steps import STEPS, Freeze, Step
from tests import forked


def test_steps_are_read_back_in_order(tmp_path: Path) -> None:
    held = journal.begin(f"{tmp_path}/pod/j", STEPS)
    held.record(Freeze("a"))
    held.record(Freeze("b"))
    assert held.steps() == [Freeze("a"), Freeze("b")]


def test_a_torn_last_step_was_never_taken(tmp_path: Path) -> None:
    held = journal.begin(f"{tmp_path}/j", STEPS)
    held.record(Freeze("a"))
    with open(held.path, "ab") as file:
        file.write(b'{"step": "free')
    assert len(held.steps()) == 1


@pytest.mark.parametrize("opened", [journal.hold, journal.adopt], ids=["hold", "adopt"])
def test_what_follows_a_torn_step_is_a_step_of_its_own(
    opened: Callable[..., Journal[Step]], tmp_path: Path
) -> None:
    dead = journal.begin(f"{tmp_path}/j", STEPS)
    dead.record(Freeze("a"))
    with open(dead.path, "ab") as file:
        file.write(b'{"step": "free')
    dead.close()
    held = opened(dead.path, STEPS)
    held.record(Freeze("b"))
    assert held.steps() == [Freeze("a"), Freeze("b")]


def test_a_journal_is_its_writers_for_as_long_as_it_lives(tmp_path: Path) -> None:
    held = journal.begin(f"{tmp_path}/j", STEPS)
    assert journal.adopt(held.path, STEPS) is None
    with pytest.raises(FailedPreconditionError, match="another operation holds it"):
        journal.begin(held.path, STEPS)
    held.close()
    adopted = journal.adopt(held.path, STEPS)
    assert adopted is not None
    adopted.end()
    assert journal.adopt(held.path, STEPS) is None


def test_a_journal_is_locked_from_its_first_moment_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = f"{tmp_path}/j"
    lock = fcntl.flock
    adopted: list[object] = []

    def others_look_first(fd: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        adopted.append(journal.adopt(path, STEPS))
        lock(fd, how)

    monkeypatch.setattr(fcntl, "flock", others_look_first)
    journal.begin(path, STEPS)
    assert adopted == [None]


def test_the_journal_of_a_killed_process_can_be_adopted(tmp_path: Path) -> None:
    path = f"{tmp_path}/j"
    ready_read, ready_write = os.pipe()

    def write() -> object:
        held = journal.begin(path, STEPS)
        held.record(Freeze("a"))
        os.write(ready_write, b"x")
        return held

    with forked.child(write):
        os.read(ready_read, 1)
        assert journal.adopt(path, STEPS) is None
    adopted = journal.adopt(path, STEPS)
    assert adopted is not None
    assert adopted.steps() == [Freeze("a")]


def test_who_waits_for_a_journal_gets_nothing_when_its_writer_ended_it(tmp_path: Path) -> None:
    path = f"{tmp_path}/j"
    held = journal.begin(path, STEPS)
    pid = os.fork()
    if pid == 0:
        held.close()  # flock belongs to the open file, which the fork shares
        os._exit(0 if journal.adopt(path, STEPS, wait=True) is None else 1)
    held.end()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
