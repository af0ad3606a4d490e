"""A directory of this machine, mounted on nodes as a volume that they share.

usage: python -m integration.node.volume DIRECTORY PID TARGET
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.node.node import Node

REPO = Path(__file__).parent.parent.parent

# Linux, include/uapi/linux/mount.h and asm-generic/unistd.h.
_OPEN_TREE, _MOVE_MOUNT = 428, 429
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_AT_FDCWD = -100


def mount(directory: Path, node: Node, target: Path) -> None:
    """Mount *directory* on *node* at *target*, for as long as the node lives."""
    node.path(target).mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", __spec__.name, str(directory), str(node.pid), str(target)]
    subprocess.run(argv, cwd=REPO, check=True)


def main() -> None:
    directory, pid, target = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    tree = libc.syscall(_OPEN_TREE, _AT_FDCWD, directory.encode(), _OPEN_TREE_CLONE)
    _require(tree)
    with open(f"/proc/{pid}/ns/mnt", "rb") as namespace:
        _require(libc.setns(namespace.fileno(), 0))
    flags = _MOVE_MOUNT_F_EMPTY_PATH
    _require(libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, target.encode(), flags))


def _require(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main()
