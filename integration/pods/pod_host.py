"""What pods run on, as far as they need to know: a throwaway node, or this machine itself."""

from __future__ import annotations

from typing import Protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence
    from pathlib import Path

    from integration.node.cri import Cri


class Host(Protocol):
    """A place with containerd on it."""

    name: str
    runtime_handler: str
    root: Path
    cri: Cri

    def path(self, path: Path) -> Path:
        """Where this machine finds what is *path* on the host."""

    def run(
        self, argv: Sequence[str], *, check: bool = True, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run *argv* on the host to its end, output captured apart."""

    def popen(
        self, argv: Sequence[str], *, stdout: int | None = None, stderr: int | None = None
    ) -> subprocess.Popen[str]:
        """Start *argv* on the host, in a process group of its own."""
