"""Finding the programs that grit runs."""

from __future__ import annotations

import os

from grit_runtime import config
from grit_runtime.errors import NotFoundError

# Where distributions install a node's tools. An agent's PATH may be that of its own image.
_USUAL = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


def directories() -> list[str]:
    """Where programs are looked for: PATH, and where they usually are."""
    return list(dict.fromkeys((*os.get_exec_path(), *_USUAL)))


def find(name: str, configured: str) -> str:
    """The path of a program: the *configured* one, else the first in `directories`.

    NotFoundError says what to do.
    """
    paths = [configured] if configured else [f"{path}/{name}" for path in directories()]
    for path in paths:
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    where = f"at {configured}" if configured else f"in {':'.join(directories())}"
    raise NotFoundError(f"{name} not found {where}; install it or set {name} in {config.PATH}")
