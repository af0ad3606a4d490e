"""A checkpoint that was verified and has not changed since is restored without being read."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from grit_runtime.host import linux
from grit_runtime.host.descriptor import closing_fd
from integration.node.cri import CriError
from integration.pods import checkpoints, kubelet, workload
from integration.tests.matrix import cases

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from integration.node.node import Node
    from integration.tests.conftest import Nodes

pytestmark = pytest.mark.usefixtures("fresh_nodes")

LARGE_BYTES = 4 << 30
RECORDS = Path("/run/grit/verified")
IN_OPEN = 0x20


@pytest.fixture(scope="module")
def checkpoint(nodes: Nodes, fresh_nodes: None) -> Path:  # noqa: ARG001 -- emptied before
    """A checkpoint on node B, with a file of 4 GiB that only its digest is read for."""
    with kubelet.running(nodes.a, workload.counter_pod("source")) as source:
        workload.wait_for_count(source, 5)
        checkpoints.take(source, "large")
    carried = checkpoints.carry(nodes.a, nodes.b, "large")
    with large(carried).open("wb") as file:
        file.truncate(LARGE_BYTES)
        file.write(os.urandom(1 << 20))
    checkpoints.seal_anew(carried)
    return carried


def large(checkpoint: Path) -> Path:
    return checkpoint / "counter/large"


@contextmanager
def opens(path: Path) -> Iterator[Callable[[], bool]]:
    """Whether anybody has opened *path* since the block began."""
    with closing_fd(linux.result("inotify_init1", "inotify", os.O_NONBLOCK)) as fd:
        linux.result("inotify_add_watch", str(path), fd, os.fsencode(path), IN_OPEN)

        def seen() -> bool:
            try:
                return bool(os.read(fd, 4096))
            except BlockingIOError:
                return False

        yield seen


def restored(node: Node, name: str) -> dict[str, object]:
    """The phase "verify" of a restore of the checkpoint."""
    annotations = (("grit.dev/restore-name", "large"), ("grit.dev/clone", "true"))
    with kubelet.running(node, workload.counter_pod(name, annotations=annotations)) as pod:
        workload.wait_for_count(pod, 20)
        (outcome,) = checkpoints.outcomes(pod)
    phases = json.loads(json.dumps(outcome["timeline"]))
    (verify,) = [phase for phase in phases if phase["phase"] == "verify"]
    found: dict[str, object] = verify
    return found


def verify(node: Node) -> None:
    node.run(["grit", "verify", f"{checkpoints.ROOT}/default/large"])


def test_what_is_recorded_is_not_read_again(nodes: Nodes, checkpoint: Path) -> None:
    node = nodes.b
    verify(node)
    with opens(large(checkpoint)) as were_read:
        assert restored(node, "recorded")["record"] == "unchanged"
        assert not were_read()
        log = node.path(cases.LOG_DIR / "default/recorded/counter/grit.log").read_text()
        assert "record=unchanged" in log
        (record,) = node.path(RECORDS).iterdir()
        record.unlink()
        assert "record" not in restored(node, "unrecorded")
        assert were_read()


def test_what_is_damaged_after_it_was_recorded_is_refused(nodes: Nodes, checkpoint: Path) -> None:
    node = nodes.b
    verify(node)
    before = large(checkpoint).stat()
    with large(checkpoint).open("r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(large(checkpoint), ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(CriError, match=r"counter/large is damaged.*\(DigestMismatch\)"):
        restored(node, "damaged")
    assert node.run(["grit", "verify", f"{checkpoints.ROOT}/default/large"], check=False).returncode
    assert list(node.path(RECORDS).iterdir()) == []
    with large(checkpoint).open("r+b") as file:
        file.write(byte)
    verify(node)
    assert restored(node, "mended")["record"] == "unchanged"
