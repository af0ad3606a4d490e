"""The process in which the driver's libraries are loaded; it lives for one request.

Reads a request from standard input and writes an answer to standard output, both JSON:
``{"libcuda": PATH, "calls": [[verb, pid, timeout_ms, pairs]...]}`` gives ``[[code, value]...]``,
the calls made in order; ``{"libnvidia_ml": PATH}`` gives nvml.facts. What the request cannot have
is an object with the one member "error".
"""

from __future__ import annotations

import json
import sys
from typing import Any

from grit_runtime.errors import GritError
from grit_runtime.host import cuda, nvml


def main() -> None:
    request = json.load(sys.stdin)
    try:
        answer = _answer(request)
    except GritError as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)


def _answer(request: dict[str, Any]) -> Any:
    if "libnvidia_ml" in request:
        return nvml.facts(request["libnvidia_ml"])
    library = cuda.load(request["libcuda"])
    return [
        cuda.perform(library, cuda.Call(verb, pid, timeout_ms, tuple(map(tuple, pairs))))
        for verb, pid, timeout_ms, pairs in request["calls"]
    ]


if __name__ == "__main__":
    main()
