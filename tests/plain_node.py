"""A node's directories in a test's own, and a runc that notes what it is told."""

from __future__ import annotations

import re
import time
from pathlib import Path

from grit_runtime.host import records

PATIENCE_S = 30
# Linked to, not written: a file that was open for writing when anybody forked cannot be run.
RUNC = Path(__file__).with_name("plain_runc")


class Node:
    """A node: its directory, with a runc that knows no container and notes its calls."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "bin").mkdir()
        (path / "bin/runc").symlink_to(RUNC)

    def write(self, name: str, text: str) -> str:
        """A file, of text in which DIR is the node's directory; its path."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("DIR", str(self.path)))
        return str(file)

    def called(self) -> list[str]:
        """What runc was told."""
        return (self.path / "called").read_text().splitlines()

    def outcomes(self) -> list[tuple[str, str]]:
        """What became of the pod, with the reasons of failures."""
        return [(one.outcome, one.error) for one in records.of_pod("5f0c")]


def wait_until_it_waits(pid: int) -> None:
    """Wait until the process *pid* waits for a lock."""
    deadline = time.monotonic() + PATIENCE_S
    while not re.search(rf"-> FLOCK .* {pid} ", Path("/proc/locks").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
