"""The process in which one of the driver's libraries is loaded; it lives for one operation.

Reads requests from standard input and writes answers to standard output, a line of JSON each. With
libcuda, ``[[verb, pid, timeout_ms, pairs]...]`` gives ``[[code, value]...]``, the calls made in
order; with libnvidia-ml, anything gives nvml.facts. A failure is an object with the one member
"error", after which the worker ends.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from typing import Any

from grit_runtime.errors import GritError
from grit_runtime.nvidia import libcuda, nvml

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes


def main(path: str) -> None:
    """Load the library at *path*, then answer requests until standard input ends."""
    try:
        if "libcuda" in os.path.basename(path):
            answer = partial(_perform, libcuda.load(path))
        else:
            answer = partial(_facts, nvml.load(path))
        for line in sys.stdin:
            _write(answer(json.loads(line)))
    except GritError as error:
        _write({"error": str(error)})


def _perform(library: ctypes.CDLL, calls: list[Any]) -> Any:
    return [
        libcuda.perform(library, libcuda.Call(verb, pid, timeout_ms, tuple(map(tuple, pairs))))
        for verb, pid, timeout_ms, pairs in calls
    ]


def _facts(library: ctypes.CDLL, _: object) -> Any:
    return nvml.facts(library)


def _write(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
