"""libcuda's checkpoint calls by hand, for what the project's own way is compared with.

As a program it makes one call a process named, all at once, and prints what each answered: a call
may block for ever, so whoever asks kills this program when its time is up.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

SYMBOLS = {
    "state": "cuCheckpointProcessGetState",
    "thread": "cuCheckpointProcessGetRestoreThreadId",
    "lock": "cuCheckpointProcessLock",
    "checkpoint": "cuCheckpointProcessCheckpoint",
    "restore": "cuCheckpointProcessRestore",
    "unlock": "cuCheckpointProcessUnlock",
}
QUERIES = ("state", "thread")
LOCK_TIMEOUT_MS = 10_000
ARGUMENT_BYTES = 64  # of every call, on every driver; zeros but for the lock's timeout

LIBRARY_DIRS = (
    *map(Path, ("/usr/local/nvidia/lib64", "/usr/local/nvidia/lib")),
    *map(Path, ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64")),
)


class Answer(NamedTuple):
    """CUresult of one call, what a query asked for, and how long it took."""

    pid: int
    code: int
    value: int
    seconds: float


def library_dir() -> Path | None:
    """Where libcuda.so.1 is, if the machine has a driver."""
    return next((path for path in LIBRARY_DIRS if (path / "libcuda.so.1").exists()), None)


def missing_symbols(library_path: Path) -> list[str]:
    """Which of the calls the driver does not have."""
    library = ctypes.CDLL(str(library_path))
    return [symbol for symbol in SYMBOLS.values() if not hasattr(library, symbol)]


def call(verb: str, pids: Sequence[int], *, timeout_s: float = 60) -> list[Answer]:
    """Make the call on all of *pids* at once, in a process of its own."""
    directory = library_dir()
    assert directory is not None, "no libcuda.so.1"
    argv = [sys.executable, "-I", __file__, str(directory / "libcuda.so.1"), verb]
    with subprocess.Popen([*argv, *map(str, pids)], stdout=subprocess.PIPE) as caller:
        try:
            answers, _ = caller.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            caller.kill()
            raise
    assert caller.returncode == 0, f"{verb}: the caller ended {caller.returncode}"
    return [Answer(*answer) for answer in json.loads(answers)]


def must(verb: str, pids: Sequence[int], *, timeout_s: float = 60) -> float:
    """Make the call, which is to succeed on all; the seconds of the slowest."""
    answers = call(verb, pids, timeout_s=timeout_s)
    refused = [answer for answer in answers if answer.code != 0]
    assert refused == [], f"{verb}: {refused}"
    return max(answer.seconds for answer in answers)


def main() -> None:
    library = ctypes.CDLL(sys.argv[1])
    verb, pids = sys.argv[2], [int(word) for word in sys.argv[3:]]
    with ThreadPoolExecutor(len(pids)) as threads:
        answers = list(threads.map(lambda pid: _call_one(library, verb, pid), pids))
    json.dump(answers, sys.stdout)


def _call_one(library: ctypes.CDLL, verb: str, pid: int) -> Answer:
    function = getattr(library, SYMBOLS[verb])
    value = ctypes.c_int(-1)
    argument = ctypes.create_string_buffer(ARGUMENT_BYTES)
    if verb == "lock":
        ctypes.c_uint32.from_buffer(argument).value = LOCK_TIMEOUT_MS
    begin = time.monotonic()
    code = function(pid, ctypes.byref(value) if verb in QUERIES else argument)
    return Answer(pid, code, value.value, round(time.monotonic() - begin, 6))


if __name__ == "__main__":
    main()
