"""Threads that unshare what the others of their process have together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from grit_runtime.host import procfs
from grit_runtime.tasks import threads

CLONE_VM, CLONE_FS, CLONE_FILES, CLONE_VFORK = 0x100, 0x200, 0x400, 0x4000
CLONE_NEWUTS = 0x4000000
RUN = """
import ctypes, sys, threading, time
def run():
    assert ctypes.CDLL(None).unshare(int(sys.argv[1])) == 0
    print(threading.get_native_id(), flush=True)
    time.sleep(1000)
for _ in range(2):
    threading.Thread(target=time.sleep, args=(1000,)).start()
threading.Thread(target=run).start()
"""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (0, []),
        (CLONE_FILES, ["descriptors"]),
        (CLONE_FS, ["a working directory and umask"]),
        (CLONE_FS | CLONE_FILES, ["descriptors", "a working directory and umask"]),
        (CLONE_NEWUTS, ["a uts namespace"]),
    ],
)
def test_a_thread_that_has_its_own_is_found(flags: int, expected: list[str]) -> None:
    command = [sys.executable, "-c", RUN, str(flags)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        tid = int(process.stdout.readline())
        found = threads.apart(process.pid)
        process.kill()
    assert found == [(tid, what) for what in expected]


CLONE = """
import ctypes, sys, time
libc = ctypes.CDLL(None)
libc.clone.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
stack = ctypes.create_string_buffer(1 << 16)
child = libc.clone(libc.pause, ctypes.addressof(stack) + (1 << 15), int(sys.argv[1]) | 17, None)
print(child, flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (0, []),
        (CLONE_FS, ["working directory and umask (CLONE_FS)"]),
        (CLONE_VM, ["memory (CLONE_VM)"]),
        (CLONE_VM | CLONE_VFORK, []),
    ],
)
def test_a_process_that_shares_what_threads_do_is_found(flags: int, expected: list[str]) -> None:
    command = [sys.executable, "-c", CLONE, str(flags)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        child = 0
        while not child:  # while a vfork lasts its parent says nothing
            child = next(iter(procfs.children(process.pid)), 0)
        if not flags & CLONE_VFORK:
            assert process.stdout is not None
            assert int(process.stdout.readline()) == child
        found = threads.shared_with_parent(child)
        for pid in (process.pid, child):
            os.kill(pid, signal.SIGKILL)
    assert found == expected


def test_a_process_that_has_ended_has_no_threads() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert threads.apart(child) == []
    os.waitpid(child, 0)
    assert threads.apart(child) == []
