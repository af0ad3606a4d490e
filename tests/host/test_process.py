import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import pytest

from grit_runtime.errors import CommandError, ImageError
from grit_runtime.host import overlay, process, procfs
from grit_runtime.nvidia import gpu_driver
from grit_runtime.tasks import descriptors, sockets, watches

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

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


def test_a_criu_that_has_overwritten_its_environment_is_found_by_its_log(tmp_path: Path) -> None:
    program = tmp_path / "criu"
    shutil.copy("/bin/sleep", program)
    with (
        (tmp_path / "dump.log").open("w") as log,
        subprocess.Popen([program, "60"], stdout=log, env={}) as criu,
    ):
        assert process.carrying("t6", str(tmp_path)) == [criu.pid]
        assert process.carrying("t6", str(tmp_path / "elsewhere")) == []
        process.wait_gone("t6", deadline_s=0, criu_dir=str(tmp_path))


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
        used = procfs.files(holder.pid)
        holder.kill()
    found = {file for file in used if file.path.startswith(str(tmp_path))}
    assert {(file.path.removeprefix(str(tmp_path)), file.is_written) for file in found} == {
        ("", False),
        ("/read", False),
        ("/written", True),
        ("/mapped", False),
        ("/sha\nred", True),
    }
    assert procfs.files(holder.pid) == []


def test_anonymous_memory_is_what_no_file_has() -> None:
    before_bytes = procfs.anonymous_bytes(os.getpid())
    held = bytearray(b"x" * (32 << 20))
    assert procfs.anonymous_bytes(os.getpid()) - before_bytes > len(held) // 2
    assert procfs.anonymous_bytes(2**22 + 1) == 0


VFORK = """
import ctypes, sys
libc = ctypes.CDLL(None)
CLONE_VFORK_AND_SIGCHLD = 0x4011
function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(lambda _: libc.poll(None, 0, 60000))
stack = ctypes.create_string_buffer(1 << 20)
print("ready", flush=True)
top = ctypes.c_void_p(ctypes.addressof(stack) + (1 << 20) - 64)
libc.clone(function, top, CLONE_VFORK_AND_SIGCHLD, None)
"""


def test_a_vfork_that_is_under_way_is_seen() -> None:
    assert procfs.cannot_be_stopped(os.getpid()) == ""
    with subprocess.Popen([sys.executable, "-c", VFORK], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        while not (child := children.read_text()):
            time.sleep(0.01)
        while not procfs.cannot_be_stopped(parent.pid):  # it waits once the child is there
            time.sleep(0.01)
        assert procfs.cannot_be_stopped(parent.pid).startswith("its vfork")
        assert procfs.is_in_kernel(parent.pid)
        os.kill(int(child), signal.SIGKILL)
    assert procfs.cannot_be_stopped(parent.pid) == ""
    assert not procfs.is_in_kernel(parent.pid)


def test_processes_that_end_while_they_are_looked_at_are_no_error() -> None:
    done = threading.Event()
    pids: deque[int] = deque(maxlen=4)

    def live_and_die() -> None:
        while not done.is_set():
            with subprocess.Popen(["sleep", "10"]) as child:
                pids.append(child.pid)
                child.kill()

    looks: list[Callable[[set[int]], object]] = [
        lambda some: [procfs.files(pid) for pid in some],
        lambda some: [procfs.anonymous_bytes(pid) for pid in some],
        lambda some: [procfs.cannot_be_stopped(pid) for pid in some],
        lambda some: [overlay.mountpoints(pid) for pid in some],
        lambda some: [watches.unread_bytes(pid) for pid in some],
        watches.on_root,
        sockets.connections,
        lambda some: sockets.unix_sockets(dict(enumerate(some))),
        lambda some: [descriptors.described(pid, procfs.open_links(pid), set()) for pid in some],
        descriptors.hang_up_after_restore,
        gpu_driver.cuda_pids,
    ]
    maker = threading.Thread(target=live_and_die)
    maker.start()
    try:
        while len(pids) < 4:
            time.sleep(0.01)
        for _ in range(100):
            for look in looks:
                look(set(pids))
    finally:
        done.set()
        maker.join()


def test_what_has_ended_and_is_not_reaped_has_no_mounts() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert overlay.mountpoints(child) == []
    os.waitpid(child, 0)


def test_work_beside_is_done_by_a_child_and_told_when_asked() -> None:
    with process.beside(lambda: [os.getpid(), "\udcff"]) as answer:
        child, text = answer()
    assert (child != os.getpid(), text) == (True, "\udcff")


def test_work_beside_that_fails_or_is_killed_says_so_when_asked() -> None:
    def fail() -> None:
        raise ImageError("core-1.img is cut")

    with process.beside(fail) as answer, pytest.raises(CommandError, match=r"^core-1\.img is cut$"):
        answer()
    with (
        process.beside(lambda: os.kill(os.getpid(), signal.SIGKILL)) as answer,
        pytest.raises(CommandError, match="was killed"),
    ):
        answer()


def test_work_beside_ends_with_the_block_that_does_not_ask() -> None:
    read_fd, write_fd = os.pipe()
    with process.beside(lambda: time.sleep(100)):
        os.close(write_fd)
    with open(read_fd, "rb") as file:
        assert file.read() == b""
