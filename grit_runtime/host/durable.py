"""Small files of JSON that are replaced whole, and outlive a loss of power."""

from __future__ import annotations

import json
import os

from grit_runtime.host.descriptor import closing_fd


def write(path: str, value: object) -> None:
    """Replace the file by *value* as JSON; it is on the medium when this returns."""
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.new", path)
    directory = os.path.dirname(path)
    with closing_fd(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        os.fsync(fd)
