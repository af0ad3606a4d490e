"""Prometheus of Debian, configured as operators are told to, and what Grafana would ask it.

Without the packages that its pages for people need.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from contextlib import contextmanager
from threading import Thread
from typing import Any, NamedTuple

import yaml

from integration.node import cache, rootfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

PROGRAMS = ("prometheus", "promtool")
ADDRESS = "127.0.0.1:9090"
MONITORING = rootfs.REPO / "runtime-config/monitoring"
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


def discovered(name: str, target: str, *, port: str, node: str) -> dict[str, Any]:
    """A port of a pod, as Prometheus finds it in a cluster. Debian's cannot look for it there."""
    found = {
        "container_port_name": port,
        "label_app_kubernetes_io_name": name,
        "name": f"{name}-x7k2p",
        "node_name": node,
    }
    labels = {f"__meta_kubernetes_pod_{key}": value for key, value in found.items()}
    return {"targets": [target], "labels": labels}


def queries() -> list[str]:
    """Those of the dashboard, as Grafana would ask them."""
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    return [
        target["expr"].replace("$__rate_interval", "1m").replace("$instance", ".*")
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    ]


def _configuration(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The operators', but quicker, and with what was *found* in the place of the search for it."""
    config = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())
    (scrape,) = config["scrape_configs"]
    del scrape["kubernetes_sd_configs"]
    scrape["static_configs"] = found
    return {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "1s"},
        "rule_files": [str(MONITORING / file) for file in config["rule_files"]],
        "scrape_configs": [scrape],
    }


@contextmanager
def running(
    programs: Path, directory: Path, found: list[dict[str, Any]], *, enter: Sequence[str]
) -> Iterator[Prometheus]:
    """A server that reads what was *found*, until the block ends; *enter* runs it elsewhere."""
    file = directory / "prometheus.json"  # which is YAML too
    file.write_text(json.dumps(_configuration(found)))
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
