"""Work shared among copies of a process: all is done, or an error is told and no copy is left."""

from __future__ import annotations

import os
import signal
import time

import pytest

from grit_runtime.errors import CommandError, ImageError
from grit_runtime.files import forked_workers


def children() -> str:
    """Pids of what this process has started."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return file.read()


def test_each_share_is_done_in_a_process_of_its_own() -> None:
    done = forked_workers.share(lambda number: (number, os.getpid()), 3)
    assert [number for number, _ in done] == [0, 1, 2]
    assert len({os.getpid(), *(pid for _, pid in done)}) == 4


def test_what_is_longer_than_a_pipe_is_returned_whole() -> None:
    assert forked_workers.share(lambda number: bytes([number]) * (1 << 20), 2) == [
        bytes(1 << 20),
        b"\1" * (1 << 20),
    ]


@pytest.mark.parametrize(
    "error", [ImageError("tar: bad"), OSError(28, "No space left on device", "a/b")], ids=repr
)
def test_the_first_error_is_told_and_ends_the_others(error: Exception) -> None:
    before = children()

    def work(number: int) -> None:
        if number == 1:
            raise error
        time.sleep(1000)

    with pytest.raises(type(error)) as caught:
        forked_workers.share(work, 3)
    assert (caught.value.args, str(caught.value)) == (error.args, str(error))
    assert children() == before


def test_a_copy_that_is_killed_is_an_error() -> None:
    def work(number: int) -> None:
        if number == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1000)

    with pytest.raises(CommandError, match=r"^a copy of this process that shared its work died"):
        forked_workers.share(work, 2)
