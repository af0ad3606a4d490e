"""Journals as version 0.1.0 wrote them: a node is upgraded in the middle of anything."""

from __future__ import annotations

import json

import pytest

from grit_runtime.checkpoint import holds
from grit_runtime.errors import INTERRUPTED
from grit_runtime.host import journal, records
from grit_runtime.model import checkpoint_steps, outcomes
from grit_runtime.pod import held_pods, volumes
from grit_runtime.restore import attempts
from tests.model.test_hold import HOLD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

# DIR stands for the directory of a test. Process 4194304 is none: the kernel counts to one less.
OUTCOME = (
    '"outcome": {"time": "2026-11-20T10:11:12Z", "outcome": "failed", "reason": "", '
    '"namespace": "default", "pod": "counter", "pod_uid": "5f0c", "sandbox_id": "5a1e", '
    '"container": "app", "container_id": "c1", "checkpoint": "DIR/counter-1", '
    '"manifest_sha256": "", "binds": false, "timeline": [], "warnings": []}'
)
BEGUN_CHECKPOINT = f'{{"step": "begin", "token": "4c1f", "runc_root": "DIR/runc", {OUTCOME}}}\n'
CHECKPOINT = (
    BEGUN_CHECKPOINT
    + """\
{"step": "directory", "path": "DIR/staging"}
{"step": "thaw", "container": "c2"}
{"step": "memory", "saved": [[4194304, "DIR/staging/0", [[4096, 8192]], "ab"]], "started": [77]}
{"step": "freeze", "container": "c1"}
{"step": "silence", "path": "DIR/netns"}
{"step": "link", "directory": "DIR/rootfs", "path": "tmp/link_remap.7"}
{"step": "memory back"}
{"step": "hold", "pod_uid": "uid-7"}
"""
)
HELD = (
    BEGUN_CHECKPOINT
    + """\
{"step": "directory", "path": "DIR/staging"}
{"step": "freeze", "container": "c1"}
{"step": "hold", "pod_uid": "uid-7"}
{"step": "frozen"}
"""
)
STOPPED = (
    BEGUN_CHECKPOINT
    + """\
{"step": "gpu", "pids": [4194304]}
{"step": "freeze", "container": "c1"}
{"step": "stop"}
"""
)
BEGUN_ATTEMPT = f'{{"step": "begin", {OUTCOME}}}\n'
ATTEMPT = (
    BEGUN_ATTEMPT
    + """\
{"step": "copy", "path": "DIR/copy"}
{"step": "claim", "manifest_sha256": "ab12", "is_clone": false, "pid": 4194304, "started": 77}
{"step": "rw layer"}
{"step": "volumes", "pod_dir": "DIR/pods/5a1e", "container_id": "c1"}
{"step": "addresses", "path": "DIR/netns", "addresses": ["10.0.0.2"]}
{"step": "mount", "path": "DIR/images"}
{"step": "log", "path": "DIR/0.log", "size_bytes": "5"}
{"step": "restore", "token": "4c1f", "program": "DIR/bin/runc", \
"global_options": ["--root=DIR/runc"], "container_id": "c1", "cgroups_path": "", \
"work_dir": "DIR/log"}
{"step": "gpu", "pids": [4194304], "token": "4c1f"}
"""
)
RESTORED = (
    BEGUN_ATTEMPT
    + '{"step": "claim", "manifest_sha256": "ab12", "pid": 4194304, "started": 77}\n'
    + f'{{"step": "restored", {OUTCOME}}}\n'.replace('"failed"', '"restored"')
)
VOLUMES = """\
{"step": "use", "volume": "shm", "path": "DIR/shm", "container_id": "c1"}
{"step": "filled", "volume": "shm"}
{"step": "let go", "container_id": "c2"}
"""
LOOPBACK = '{"step": "hold", "path": "DIR/netns", "pid": 4194304}\n'

RUNC = """\
#!/bin/sh
echo "$2 $3 $4" >>DIR/called
[ "$2" != state ] || { echo container does not exist >&2; exit 1; }
"""


class Node:
    """A node that an older version has left so: its directory, with a runc that notes its calls."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "bin").mkdir()
        self.write("bin/runc", RUNC)
        (path / "bin/runc").chmod(0o755)

    def write(self, name: str, text: str) -> str:
        """A file, of text in which DIR is the node's directory; its path."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace("DIR", str(self.path)))
        return str(file)

    def called(self) -> list[str]:
        """What runc was told."""
        return (self.path / "called").read_text().splitlines()

    def outcomes(self) -> list[tuple[str, str]]:
        """What became of the pod, with the reasons of failures."""
        return [(one.outcome, one.error) for one in records.of_pod("5f0c")]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(journal, "PODS_DIR", str(tmp_path / "pods"))
    monkeypatch.setattr(records, "DIR", str(tmp_path / "records"))
    monkeypatch.setattr(held_pods, "DIR", str(tmp_path / "held"))
    return Node(tmp_path)


def test_a_checkpoint_in_the_middle_is_undone(node: Node) -> None:
    path = node.write("pods/5a1e/checkpoint.journal", CHECKPOINT)
    link = node.write("rootfs/tmp/link_remap.7", "")
    node.write("staging/0", "")
    held_pods.keep(HOLD._replace(pod_uid="uid-7"))
    holds.supervise(path)
    assert node.called() == ["resume c1 ", "pause c2 "]
    assert not any((node.path / name).exists() for name in (link, "staging", "pods/5a1e"))
    assert held_pods.every() == []
    assert node.outcomes() == [(outcomes.FAILED, INTERRUPTED)]


def test_a_held_pod_stays_held_until_it_is_resumed(node: Node) -> None:
    path = node.write("pods/5a1e/checkpoint.journal", HELD)
    node.write("runc/5a1e/state.json", "")
    held_pods.keep(HOLD._replace(pod_uid="uid-7"))
    holds.supervise(path)
    assert holds.is_pod_held(path)
    held = journal.adopt(path, checkpoint_steps.STEPS)
    assert held is not None
    holds.undo(held)
    assert node.called() == ["resume c1 "]
    assert [hold.pod_uid for hold in held_pods.every()] == ["uid-7"]


def test_a_stop_that_had_begun_is_completed(node: Node) -> None:
    holds.supervise(node.write("pods/5a1e/checkpoint.journal", STOPPED))
    assert node.called() == ["state c1 "]
    assert not (node.path / "pods/5a1e").exists()


def test_an_attempt_in_the_middle_is_undone(node: Node) -> None:
    node.write("pods/5a1e/c1/attempt.journal", ATTEMPT)
    node.write(f"pods/5a1e/{volumes.JOURNAL}", VOLUMES)
    loopback_path = node.write("pods/5a1e/loopback.journal", LOOPBACK)
    for name in ("copy/manifest.json", "shm/filled"):
        node.write(name, "")
    log = node.write("0.log", "lines")
    attempts.recover()
    assert node.called() == ["delete --force c1"]
    assert not any((node.path / name).exists() for name in (loopback_path, "copy", "shm/filled"))
    assert (node.path / log).read_text() == ""
    assert not (node.path / "pods/5a1e/c1").exists()
    assert node.outcomes() == [(outcomes.FAILED, INTERRUPTED)]


def test_a_restored_container_is_started_once(node: Node) -> None:
    path = node.write("pods/5a1e/c1/attempt.journal", RESTORED)
    attempts.sweep(f"{node.path}/pods/5a1e")
    assert attempts.claim_start(f"{node.path}/pods/5a1e/c1")
    assert not attempts.claim_start(f"{node.path}/pods/5a1e/c1")
    assert node.outcomes() == [(outcomes.RESTORED, "")]
    assert json.loads((node.path / path).read_text().splitlines()[-1]) == {"step": "started"}
    attempts.forget(f"{node.path}/pods/5a1e/c1")
    assert not (node.path / "pods/5a1e").exists()
