"""A program that does nothing on the card itself: the child that it starts does."""

from __future__ import annotations

import signal
import subprocess
import sys


def main() -> None:
    argv = [sys.executable, "-m", "integration.gpu.workloads.training", *sys.argv[1:]]
    with subprocess.Popen(argv) as child:
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        sys.exit(child.wait())


if __name__ == "__main__":
    main()
