"""Children of a CUDA process let go of what they cannot use, and notice nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

from grit_runtime.host import process
from grit_runtime.nvidia import gpu_driver, inherited
from grit_runtime.tasks import ptrace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO

pytestmark = pytest.mark.skipif(not ptrace.IS_SUPPORTED, reason="ptrace.py is for x86-64 alone")

# A process with two files that are named as devices are, one of them mapped, and two children: the
# first has them from its parent, the second has opened one itself too. Each child is asked by a
# line, and answers with what it finds: what it reads, the first byte of its mapping, its flags.
FAMILY = """
import fcntl, mmap, os, subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev"], check=True)
subprocess.run(["mknod", "/dev/null", "c", "1", "3"], check=True)
for name in ("nvidia0", "nvidiactl"):
    with open(f"/dev/{name}", "w") as file:
        file.write("x" * 8192)
fds = [os.open("/dev/nvidia0", os.O_RDWR | os.O_CLOEXEC), os.open("/dev/nvidiactl", os.O_RDWR)]
os.set_inheritable(fds[1], True)
mapped = mmap.mmap(fds[0], 8192)
def answer(read_fd):
    for _ in open(read_fd):
        reads = [os.pread(fd, 1, 0) for fd in fds]
        found = mapped[0]
        mapped[0] = 7
        flags = [fcntl.fcntl(fd, fcntl.F_GETFD) for fd in fds]
        os.write(1, f"{reads} {found} {mapped[0]} {flags}\\n".encode())
    os._exit(0)
children, ends = [], []
for number in range(2):
    read_fd, write_fd = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write_fd)
        if number:
            own = os.open("/dev/nvidiactl", os.O_RDONLY)
        os.write(1, b"ready\\n")
        answer(read_fd)
    children.append(child)
    ends.append(write_fd)
os.write(1, f"{os.getpid()} {children[0]} {children[1]}\\n".encode())
for line in sys.stdin:
    os.write(ends[0], line.encode())
"""

UNTOUCHED = "[b'x', b'x'] 120 7 [1, 0]"


@contextmanager
def family() -> Iterator[tuple[int, int, int, IO[str], IO[str]]]:
    """The pids of the process and its children, and the ends by which the first child is asked."""
    argv = ["unshare", "--mount", sys.executable, "-c", FAMILY]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        lines = sorted(running.stdout.readline() for _ in range(3))
        parent, first, second = map(int, lines[0].split())
        try:
            yield parent, first, second, running.stdin, running.stdout
        finally:
            running.kill()


def ask(asked: IO[str], answers: IO[str]) -> str:
    asked.write("\n")
    asked.flush()
    return answers.readline().strip()


def test_a_child_that_only_inherited_devices_is_left_null_and_empty_memory_in_their_place() -> None:
    with family() as (parent, child, other, asked, answers):
        heirs, others = inherited.find([parent, child, other], [parent])
        assert ([heir.pid for heir in heirs], others) == ([child], [other])
        assert len(heirs[0].descriptors) == 3  # the mapping has one of its own
        inherited.let_go(lambda: [parent, child, other], [parent], process.new_token())
        assert gpu_driver.held_nodes(child) == []
        assert ask(asked, answers) == "[b'', b''] 0 7 [1, 0]"
        assert gpu_driver.held_nodes(parent) == ["/dev/nvidia0", "/dev/nvidiactl"]
        assert gpu_driver.held_nodes(other) != []


def test_nobody_inherits_what_the_parent_has_opened_anew() -> None:
    with family() as (parent, child, _, asked, answers):
        assert inherited.find([child], [os.getpid()]) == ([], [child])
        assert inherited.find([parent], [parent]) == ([], [])
        assert ask(asked, answers) == UNTOUCHED


def test_a_child_that_has_ended_meanwhile_is_passed_over() -> None:
    with family() as (parent, child, _, _, _):

        def ending() -> list[int]:
            os.kill(child, 9)
            return [child]

        inherited.let_go(ending, [parent], process.new_token())
