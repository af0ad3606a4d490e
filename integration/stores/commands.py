"""grit's commands as children of a test, with a checkpoint root and an environment of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

from integration.node.rootfs import REPO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# The root is where the configuration says, so a mount of the child's own puts another there.
_WITH_ROOT = """
mount -t tmpfs none /mnt
mkdir /mnt/grit-agent
mount --bind "$1" /mnt/grit-agent
shift
exec "$@"
"""


class Commands(NamedTuple):
    """grit on a node whose checkpoint root is *root*."""

    root: Path
    environment: Mapping[str, str] = {}
    enter: tuple[str, ...] = ()  # what runs it elsewhere

    def start(self, *words: str) -> subprocess.Popen[str]:
        """`grit WORDS`; the process is grit's own."""
        self.root.mkdir(parents=True, exist_ok=True)
        aws = {name for name in os.environ if name.startswith("AWS_")}
        kept = {name: value for name, value in os.environ.items() if name not in aws}
        return subprocess.Popen(
            [
                *self.enter,
                *("unshare", "--mount", "sh", "-ec", _WITH_ROOT, "sh", str(self.root)),
                *(sys.executable, "-m", "grit_runtime.cli.main", *words),
            ],
            env={**kept, **self.environment, "PYTHONPATH": str(REPO)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, timeout_s: float = 300) -> str:
        """What it has printed; a failed test if it has failed."""
        with self.start(*words) as process:
            out, err = process.communicate(timeout=timeout_s)
        assert process.returncode == 0, err
        return out

    def peak_mib(self, *words: str) -> float:
        """The most memory that it has had."""
        process = self.start(*words)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        with process:
            assert process.returncode == 0, process.communicate()
        return usage.ru_maxrss / 1024

    def fails(self, *words: str, timeout_s: float = 300) -> str:
        """The one line that it has ended with."""
        with self.start(*words) as process:
            _, err = process.communicate(timeout=timeout_s)
        assert process.returncode == 1, err
        assert err.count("\n") == 1, err
        assert err.startswith("grit: "), err
        return err
