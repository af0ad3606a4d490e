"""`grit-runtime restore` as runc is used by hand, by a caller that waits for the container."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image
from integration.node import images
from integration.tests.matrix import cases, single, test_lies

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.node.node import Node
    from integration.tests.conftest import Nodes

BUNDLE = "/run/by-hand"
IMAGES = f"{BUNDLE}/images/as/deep/as"  # as those of a pod, for what lies to CRIU
RESTORE = ["grit-runtime", "restore", "--bundle", BUNDLE, "--image-path", IMAGES]
CODE = """
import signal
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
check(lambda: sorted(open("/proc/self/status").read().split("NoNewPrivs")[1].split()[:3]))
"""


@pytest.fixture
def dumped(nodes: Nodes) -> Iterator[Node]:
    """A node where a container that runc ran by hand was dumped."""
    node = nodes.a
    config = node.path(Path(BUNDLE)) / "config.json"
    (config.parent / "rootfs").mkdir(parents=True)
    mount = ["ctr", "-n", "k8s.io", "images", "mount", "--rw", images.PYTHON, f"{BUNDLE}/rootfs"]
    node.run(mount)
    node.run(["runc", "spec", "--bundle", BUNDLE])
    spec = json.loads(config.read_text())
    spec["process"] |= {"terminal": False, "args": list(single.command(CODE))}
    del spec["process"]["rlimits"]
    spec["root"]["readonly"] = False
    config.write_text(json.dumps(spec))
    try:
        with node.popen(
            ["runc", "run", "--bundle", BUNDLE, "by-hand"], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            node.run(["runc", "checkpoint", "--image-path", IMAGES, "by-hand"])
        yield node
    finally:
        node.run(["runc", "delete", "--force", "by-hand"], check=False)
        node.run(["ctr", "-n", "k8s.io", "images", "unmount", f"{BUNDLE}/rootfs"])
        shutil.rmtree(config.parent)


@pytest.mark.case("runc restore by hand, in the foreground", cases.RESTORED)
def test_a_restore_in_the_foreground_ends_as_its_container_does(dumped: Node) -> None:
    with dumped.popen([*RESTORE, "by-hand"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while dumped.run(["runc", "exec", "by-hand", *single.GO_ON], check=False).returncode != 0:
            assert process.poll() is None
        assert process.stdout.readline() == "RESULT SAME\n"
        dumped.run(["runc", "kill", "by-hand", "TERM"])
        assert process.wait() == 7
    assert list(dumped.path(Path("/run/grit")).glob("criu-*")) == []


@pytest.mark.case("runc restore by hand, of what CRIU gives more than it had", cases.REFUSED)
def test_a_restore_in_the_foreground_is_read_back(dumped: Node) -> None:
    image = test_lies.load(dumped.path(Path(IMAGES)) / "core-1.img")
    core = criu_image.entry(image, criu.core_entry)
    test_lies.capable(core)
    with test_lies.lie(dumped, criu_image.with_entry(image, 0, core)):
        failed = dumped.run([*RESTORE, "by-hand"], check=False)
    assert failed.returncode == 128 + signal.SIGKILL
    assert "CRIU has not restored what was dumped" in failed.stderr
    assert "CapPrm is 0x" in failed.stderr
