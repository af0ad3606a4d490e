"""The process in which one of the driver's libraries is loaded; it lives for one operation.

Reads requests from standard input and writes answers to standard output, a line of JSON each. Of
libcuda, ``[[verb, pid, timeout_ms, pairs]...]`` gives ``[[code, value]...]``, the calls made in
order; of libnvidia-ml, anything gives nvml.facts. What cannot be had is an object with the one
member "error", and the end.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from typing import Any

from grit_runtime.errors import GritError
from grit_runtime.host import cuda, nvml

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ctypes


def main(path: str) -> None:
    """Load the library at *path*, then answer until there is nobody to ask."""
    try:
        if "libcuda" in os.path.basename(path):
            answer = partial(_perform, cuda.load(path))
        else:
            answer = partial(_facts, nvml.load(path))
        for line in sys.stdin:
            _write(answer(json.loads(line)))
    except GritError as error:
        _write({"error": str(error)})


def _perform(library: ctypes.CDLL, calls: list[Any]) -> Any:
    return [
        cuda.perform(library, cuda.Call(verb, pid, timeout_ms, tuple(map(tuple, pairs))))
        for verb, pid, timeout_ms, pairs in calls
    ]


def _facts(library: ctypes.CDLL, _: object) -> Any:
    return nvml.facts(library)


def _write(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
