"""Pods and tasks under containerd-shim-grit-v1, as kubelet, ctr and a failing node treat them."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from integration import kubelet
from integration.test_node import COUNT, shell_pod

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.conftest import Nodes
    from integration.node import Node

pytestmark = pytest.mark.usefixtures("fresh_nodes", "shim_handler")

TIMEOUT_S = 30
POLL_S = 0.02


class Events:
    """What containerd's own event stream says, from now on."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def of(self, container_id: str, until: str) -> list[tuple[str, dict[str, object]]]:
        """A container's events up to the topic *until*: topics, without "/tasks/", and contents."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            found = [
                (topic, event)
                for topic, event in self._read()
                if container_id in (event.get("container_id"), event.get("id"))
            ]
            if any(topic == until for topic, _ in found):
                return found
            assert time.monotonic() < deadline, f"no {until} of {container_id}: {found}"
            time.sleep(POLL_S)

    def _read(self) -> Iterator[tuple[str, dict[str, object]]]:
        for line in self._path.read_text().splitlines():
            if match := re.search(r" /tasks/([a-z-]+) (\{.*\})$", line):
                yield match[1], json.loads(match[2])


@contextmanager
def watching(node: Node) -> Iterator[Events]:
    path = node.path(Path("/run/events"))
    with path.open("w") as file:
        process = node.popen(["ctr", "--namespace", "k8s.io", "events"], stdout=file)
    try:
        wait_until_heard(node, path)
        yield Events(path)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_heard(node: Node, path: Path) -> None:
    """Make events that have nothing to do with tasks until one of them is in the stream."""
    deadline = time.monotonic() + TIMEOUT_S
    while not path.read_text():
        assert time.monotonic() < deadline, "containerd's events are not heard"
        node.run(["ctr", "namespaces", "label", "k8s.io", f"heard={time.monotonic_ns()}"])


def test_a_containers_events_come_in_order(nodes: Nodes) -> None:
    with watching(nodes.a) as events, kubelet.running(nodes.a, shell_pod("ordered", COUNT)) as pod:
        assert pod.exec_sync("main", ["sh", "-c", "exit 3"]).exit_code == 3
        container_id = pod.container_ids["main"]
        pod.stop(grace_period_s=1)
        pod.remove()
        seen = events.of(container_id, "delete")
    print(seen)
