"""Prometheus of Debian, without the packages that its pages for people need."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import contextmanager
from threading import Thread
from typing import Any, NamedTuple

from integration.node import cache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

PROGRAMS = ("prometheus", "promtool")
ADDRESS = "127.0.0.1:9090"
READY = "Server is ready to receive web requests."
_PACKAGE = "prometheus"


def use() -> AbstractContextManager[Path]:
    """The directory that has the programs, fetched once and cached."""
    return cache.use(_PACKAGE, "\n".join(PROGRAMS).encode(), _fetch)


def _fetch(directory: Path) -> None:
    subprocess.run(["apt-get", "-qq", "update"], check=True)
    fetch = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", _PACKAGE]
    subprocess.run(fetch, cwd=directory, check=True)
    (package,) = directory.iterdir()
    subprocess.run(["dpkg-deb", "--extract", package, directory / "root"], check=True)
    for program in PROGRAMS:
        (directory / "root/usr/bin" / program).rename(directory / program)
    subprocess.run(["rm", "-r", package, directory / "root"], check=True)


class Prometheus(NamedTuple):
    """One that runs where *enter* leads."""

    programs: Path
    enter: Sequence[str]

    def ask(self, query: str) -> list[dict[str, Any]]:
        """What it finds now; a failed test if the query means nothing."""
        words = ["query", "--format=json", "instant", f"http://{ADDRESS}", query]
        argv = [*self.enter, str(self.programs / "promtool"), *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{query}: {done.stderr}"
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    def wait_for(self, query: str, is_right: Callable[[list[dict[str, Any]]], object]) -> None:
        """Wait until what it finds *is_right*."""
        deadline_s = time.monotonic() + 30
        while not is_right(found := self.ask(query)):
            assert time.monotonic() < deadline_s, (query, found)
            time.sleep(0.2)


@contextmanager
def running(
    programs: Path, directory: Path, config: dict[str, Any], *, enter: Sequence[str]
) -> Iterator[Prometheus]:
    """A server with that configuration, until the block ends; *enter* is what runs it elsewhere."""
    file = directory / "prometheus.json"  # which is YAML too
    file.write_text(json.dumps(config))
    words = [f"--config.file={file}", f"--storage.tsdb.path={directory / 'data'}"]
    words += [f"--web.listen-address={ADDRESS}"]
    argv = [*enter, str(programs / "prometheus"), *words]
    with subprocess.Popen(
        argv, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        try:
            told = []
            for line in process.stderr:
                told.append(line)
                if READY in line:
                    break
            else:
                raise AssertionError("".join(told))
            Thread(target=process.stderr.read, daemon=True).start()
            yield Prometheus(programs, enter)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
