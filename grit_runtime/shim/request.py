"""What one call of containerd-shim-grit-v1 was given: by our own caller, or by the launcher's."""

from __future__ import annotations

import os
import sys
from typing import NamedTuple

from grit_runtime.host import process
from grit_runtime.model import shim_flags

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


# Where the launcher keeps its streams: the shell puts others in their usual places now and then.
LAUNCHER_STDIN = 3
LAUNCHER_STDOUT = 4


class Request(NamedTuple):
    """An action with its flags, and where and by which process it is asked for."""

    pid: int
    flags: dict[str, str]
    action: str
    directory: str
    environment: dict[str, str]
    stdin: bytes


def own(words: Sequence[str]) -> Request:
    """What this process was given. What is read at all is read to its end."""
    flags, action = shim_flags.parse(words)
    stdin = sys.stdin.buffer.read() if action == "start" or "info" in flags else b""
    return Request(os.getpid(), flags, action, os.getcwd(), dict(os.environ), stdin)


def of_launcher(pid: int) -> Request:
    """What the launcher *pid* was given, which has read nothing of its standard input."""
    _shell, _launcher, *words = process.proc_text(pid, "cmdline").rstrip("\0").split("\0")
    flags, action = shim_flags.parse(words)
    pairs = process.proc_text(pid, "environ").rstrip("\0").split("\0")
    with open(f"/proc/{pid}/fd/{LAUNCHER_STDIN}", "rb") as file:
        stdin = file.read()
    environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    return Request(pid, flags, action, os.readlink(f"/proc/{pid}/cwd"), environment, stdin)
