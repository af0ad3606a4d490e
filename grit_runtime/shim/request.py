"""The input of one call of containerd-shim-grit-v1: of this process, or of a launcher."""

from __future__ import annotations

import os
import sys

from grit_runtime.host import procfs
from grit_runtime.model import shim_flags
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


# The launcher keeps its streams here, because the shell sometimes replaces the usual descriptors.
LAUNCHER_STDIN = 3
LAUNCHER_STDOUT = 4


class Request(NamedTuple):
    """An action with its flags, and the directory and the process that it is requested from."""

    pid: int
    flags: dict[str, str]
    action: str
    directory: str
    environment: dict[str, str]
    stdin: bytes


def of_this_process(words: Sequence[str]) -> Request:
    """The request of this process. Input that is read is read to its end."""
    flags, action = shim_flags.parse(words)
    stdin = sys.stdin.buffer.read() if action == "start" or "info" in flags else b""
    return Request(os.getpid(), flags, action, os.getcwd(), dict(os.environ), stdin)


def of_launcher(pid: int) -> Request:
    """The request of the launcher *pid*, which has read nothing of its standard input."""
    _shell, _launcher, *words = procfs.text(pid, "cmdline").rstrip("\0").split("\0")
    flags, action = shim_flags.parse(words)
    pairs = procfs.text(pid, "environ").rstrip("\0").split("\0")
    with open(f"/proc/{pid}/fd/{LAUNCHER_STDIN}", "rb") as file:
        stdin = file.read()
    environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return Request(pid, flags, action, os.readlink(f"/proc/{pid}/cwd"), environment, stdin)
