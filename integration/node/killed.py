"""Runs a command of grit, killed before its Nth change of the disk. Copied onto nodes by tests.

The arguments are N and the command's words. A command that makes fewer changes ends as ever.
"""

from __future__ import annotations

import os
import signal
import sys

from grit_runtime.cli.main import main

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.symlink", "os.chmod", "os.chown"}


def kill_at(step: int) -> None:
    """From now on, kill this process when it is about to make its change number *step*."""
    made, ours = 0, os.getpid()

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal made
        flags = arguments[2] if event == "open" else 0
        is_change = event in CHANGES or (isinstance(flags, int) and flags & os.O_ACCMODE)
        if is_change and os.getpid() == ours:  # children change nothing that lasts
            made += 1
            if made == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


if __name__ == "__main__":
    kill_at(int(sys.argv[1]))
    sys.argv = ["grit", *sys.argv[2:]]
    main()
