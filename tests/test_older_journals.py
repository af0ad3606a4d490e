"""A node is upgraded in the middle of anything: journals of version 0.1.0, and a supervisor."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pyroute2
import pytest

from grit_runtime.checkpoint import undoing
from grit_runtime.errors import INTERRUPTED
from grit_runtime.host import journal, process
from grit_runtime.model import checkpoint_steps, outcomes
from grit_runtime.pod import held_pods, volumes
from grit_runtime.restore import attempts
from tests.model.test_hold import HOLD
from tests.plain_node import PATIENCE_S, wait_until_it_waits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.plain_node import Node

REPO = Path(__file__).parent.parent

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

# Takes a checkpoint as far as the steps that it is given, once it is told to begin.
ENGINE = """\
import json, sys
from grit_runtime.checkpoint import holds
from grit_runtime.host.containerd import Pod
from grit_runtime.model.checkpoint_steps import STEPS

print("loaded", flush=True)
for number, line in enumerate(sys.stdin):
    if number == 0:
        journal = holds.begin(Pod("5a1e", "default", "counter", "5f0c", True, True, {}, ()))
    journal.record(STEPS.read(json.loads(line)))
    print("recorded", flush=True)
"""


class Installed:
    """This version, installed on a node with its own places and the dependency it loads last."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.packages = node.path / "packages"
        self.install()

    def install(self) -> None:
        shutil.rmtree(self.packages, ignore_errors=True)
        for package in (REPO / "grit_runtime", Path(pyroute2.__file__).parent):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(package, self.packages / package.name, ignore=ignored)
        places = {"RUN_DIR": "", "STATE_DIR": "", "LOG_DIR": "/log", "POD_LOGS_DIR": "/pods-logs"}
        lines = [f"{name} = {str(self.node.path) + place!r}\n" for name, place in places.items()]
        (self.packages / "grit_runtime/paths.py").write_text("".join(lines))

    def replace(self) -> None:
        """Put packages in their place that have none of their modules, as a later version may."""
        for package in self.packages.iterdir():
            shutil.rmtree(package)
            package.mkdir()
            (package / "__init__.py").touch()

    def python(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-B", *arguments],
            cwd=self.node.path,
            env={"PATH": f"{self.node.path}/bin:/usr/bin:/bin", "PYTHONPATH": str(self.packages)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @contextmanager
    def checkpoint(self, *, replaced: bool = False) -> Iterator[int]:
        """Take the steps of CHECKPOINT, and be killed when the block ends; the supervisor's pid.

        *replaced*: the packages are replaced just before the supervisor is started.
        """
        with self.python("-c", ENGINE) as engine:
            assert engine.stdin is not None
            assert engine.stdout is not None
            assert engine.stdout.readline() == "loaded\n"
            if replaced:
                self.replace()
            for line in CHECKPOINT.replace("DIR", str(self.node.path)).splitlines():
                print(line, file=engine.stdin, flush=True)
                assert engine.stdout.readline() == "recorded\n"
            (supervisor,) = (
                Path(f"/proc/{engine.pid}/task/{engine.pid}/children").read_text().split()
            )
            yield int(supervisor)
            engine.kill()
        assert process.wait_exit(int(supervisor), timeout_s=PATIENCE_S)


@pytest.fixture
def installed(node: Node) -> Iterator[Installed]:
    node.write("staging/0", "")
    with subprocess.Popen(["unshare", "--net", "sleep", "300"]) as pod:
        (node.path / "netns").symlink_to(f"/proc/{pod.pid}/ns/net")
        yield Installed(node)
        pod.kill()


def test_a_checkpoint_in_the_middle_is_undone(node: Node) -> None:
    path = node.write("pods/5a1e/checkpoint.journal", CHECKPOINT)
    link = node.write("rootfs/tmp/link_remap.7", "")
    node.write("staging/0", "")
    held_pods.keep(HOLD._replace(pod_uid="uid-7"))
    undoing.supervise(path)
    assert node.called() == ["resume c1 ", "pause c2 "]
    assert not any((node.path / name).exists() for name in (link, "staging", "pods/5a1e"))
    assert held_pods.every() == []
    assert node.outcomes() == [(outcomes.FAILED, INTERRUPTED)]


def test_a_held_pod_stays_held_until_it_is_resumed(node: Node) -> None:
    path = node.write("pods/5a1e/checkpoint.journal", HELD)
    node.write("runc/5a1e/state.json", "")
    held_pods.keep(HOLD._replace(pod_uid="uid-7"))
    undoing.supervise(path)
    assert undoing.is_pod_held(path)
    held = journal.adopt(path, checkpoint_steps.STEPS)
    assert held is not None
    undoing.undo(held, resuming=True)
    assert node.called() == ["resume c1 "]
    assert [hold.pod_uid for hold in held_pods.every()] == ["uid-7"]


def test_a_stop_that_had_begun_is_completed(node: Node) -> None:
    undoing.supervise(node.write("pods/5a1e/checkpoint.journal", STOPPED))
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


def test_a_supervisor_whose_packages_are_replaced_undoes_its_checkpoint(
    installed: Installed,
) -> None:
    with installed.checkpoint() as supervisor:
        wait_until_it_waits(supervisor)
        installed.replace()
    assert_undone(installed.node)


def test_what_a_supervisor_could_not_undo_the_next_command_does(installed: Installed) -> None:
    with installed.checkpoint(replaced=True):
        pass
    installed.install()
    with installed.python("-m", "grit_runtime.cli.main", "recover") as recovering:
        assert recovering.stdout is not None
        assert recovering.stdout.read().startswith("undone: ")
    assert_undone(installed.node)


def assert_undone(node: Node) -> None:
    assert node.called() == ["resume c1 ", "pause c2 "]
    assert not (node.path / "staging").exists()
    assert not (node.path / "pods/5a1e").exists()
    assert node.outcomes() == [(outcomes.FAILED, INTERRUPTED)]
