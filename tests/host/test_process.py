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


HOLD = """
import mmap, os, sys
os.chdir(sys.argv[1])
maps = []
for name, access in (("mapped", mmap.ACCESS_READ), ("sha\\nred", mmap.ACCESS_WRITE)):
    with open(name, "r+b") as file:
        maps.append(mmap.mmap(file.fileno(), 1, access=access))
os.closerange(3, 100)  # a map has kept its own descriptor
opened, written, gone = open("read"), open("written", "a"), open("gone", "w")
os.unlink("gone")
print("ready", flush=True)
sys.stdin.read()
"""


def test_the_files_of_a_process_are_those_it_has_open_mapped_or_works_in(tmp_path: Path) -> None:
    for name in ("read", "written", "mapped", "sha\nred"):
        (tmp_path / name).write_text("x")
    argv = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        used = process.files(holder.pid)
        holder.kill()
    found = {file for file in used if file.path.startswith(str(tmp_path))}
    assert {(file.path.removeprefix(str(tmp_path)), file.is_written) for file in found} == {
        ("", False),
        ("/read", False),
        ("/written", True),
        ("/mapped", False),
        ("/sha\nred", True),
    }
    assert process.files(holder.pid) == []


def test_anonymous_memory_is_what_no_file_has() -> None:
    before_bytes = process.anonymous_bytes(os.getpid())
    held = bytearray(b"x" * (32 << 20))
    assert process.anonymous_bytes(os.getpid()) - before_bytes > len(held) // 2
    assert process.anonymous_bytes(2**22 + 1) == 0
