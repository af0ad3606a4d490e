import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from grit_runtime.errors import CommandError
from grit_runtime.host import process

REPO = Path(__file__).parents[2]


def test_output_is_returned() -> None:
    assert process.run(["sh", "-c", "echo hello"], token="t1") == b"hello\n"


def test_a_failure_carries_the_programs_last_line() -> None:
    script = "echo one >&2; echo 'two: no such thing' >&2; exit 7"
    with pytest.raises(CommandError, match=r"^sh .*: two: no such thing$"):
        process.run(["sh", "-c", script], token="t2")


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(CommandError, match="no-such-program: No such file"):
        process.run(["no-such-program"], token="t3")


def test_a_child_does_not_inherit_pythons_ignored_signals() -> None:
    status = process.run(["grep", "SigIgn", "/proc/self/status"], token="t4")
    assert int(status.split()[1], 16) & (1 << (signal.SIGPIPE - 1)) == 0


def test_grandchildren_are_found_by_the_token_and_gone_after_the_deadline() -> None:
    token = f"t5-{os.getpid()}"
    process.run(["sh", "-c", "sleep 60 >/dev/null 2>&1 &"], token=token)
    (pid,) = process.carrying(token)
    assert b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()
    process.wait_gone(token, deadline_s=0)
    assert process.carrying(token) == []


def test_a_child_dies_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    code = (
        "from grit_runtime.host import process\n"
        f"process.run(['sh', '-c', 'echo $$ > {fifo}; exec sleep 60'], token='t6')"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as parent:
        child = int(fifo.read_text())
        parent.kill()
    assert process.wait_exit(child, timeout_s=10)
