"""Checkpoints on their way to a node: announced there, as whoever brings them does it."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from contextlib import contextmanager

from integration.node import rootfs
from integration.pods import checkpoints

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from subprocess import Popen

    from integration.node.node import Node

# Announces until its input ends; a line of it is an error of the transfer.
_ANNOUNCE = """
import sys
from grit_runtime.errors import ImageError
from grit_runtime.files import arrivals
root, name, sha256 = sys.argv[1:]
with arrivals.announced(root, "default", name, sha256, 40 << 30, "peer node-a") as arrival:
    arrival.tell(12 << 30)
    print("announced", flush=True)
    for line in sys.stdin:
        raise ImageError(line.strip())
"""


@contextmanager
def announced(node: Node, name: str, sha256: str) -> Iterator[Popen[str]]:
    """While the block runs, a process on *node* announces a checkpoint of 40 GiB."""
    python = f"/{rootfs.VENV}/bin/python"
    argv = [python, "-c", _ANNOUNCE, str(checkpoints.ROOT), name, sha256]
    pipe = subprocess.PIPE
    with node.popen(argv, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "announced\n"
        yield writer
        # Popen closes its input and waits


def fail(writer: Popen[str], reason: str) -> None:
    """Have the transfer fail."""
    assert writer.stdin is not None
    writer.stdin.write(f"{reason}\n")
    writer.stdin.close()
    writer.wait()


def staged(source: Path, name: str) -> Path:
    """A copy of the checkpoint in *source* beside it, that publish() gives its name."""
    path = source.with_name(f".{name}.arriving")
    shutil.copytree(source, path)
    return path


def publish(path: Path, name: str) -> None:
    """Give what is staged its name, in one step."""
    os.rename(path, path.with_name(name))


def sha256(path: Path) -> str:
    """The digest that names the checkpoint in *path*."""
    return hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest()
