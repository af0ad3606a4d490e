"""Checkpoints that earlier versions took come back; those of later ones are not guessed at."""

from __future__ import annotations

import hashlib
import json
import platform
import resource
import shutil

import pytest

from grit_runtime.model import manifest as manifests
from integration.node import images, rootfs
from integration.pods import checkpoints
from integration.pods.pod_spec import ContainerSpec, PodSpec
from integration.tests.matrix import cases

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

GOLDENS = rootfs.REPO / "tests/goldens"
NAME = "format-1"
RLIMIT_SIGPENDING = 11  # asm-generic/resource.h


def spec() -> PodSpec:
    container = ContainerSpec(name="count", image=images.BUSYBOX, command=("/bin/sleep", "1000"))
    asking = (("grit.dev/restore-name", NAME),)
    return PodSpec(name="released", containers=(container,), annotations=asking)


def put(nodes: Nodes) -> Path:
    """The golden in its place on node B."""
    there = checkpoints.directory(nodes.b, NAME)
    there.parent.mkdir(mode=0o700, exist_ok=True)
    shutil.rmtree(there, ignore_errors=True)
    shutil.copytree(GOLDENS / NAME, there)
    for path in (there, *there.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    fit_to_machine(there)
    return there


def fit_to_machine(path: Path) -> None:
    """Lower limits of the golden's tasks to those here, which the size of the memory decides.

    A node of the tests may not raise them. The manifest stays one of its version.
    """
    manifest_path = path / manifests.FILE_NAME
    manifest = json.loads(manifest_path.read_text())
    for image_path in sorted((path / "count/checkpoint").glob("core-*.img")):
        checkpoints.forge(image_path.parent, image_path.name, lower_limits)
        name = str(image_path.relative_to(path))
        (listed,) = (file for file in manifest["files"] if file["path"] == name)
        data = image_path.read_bytes()
        listed["size_bytes"] = len(data)
        listed["digest"] = f"sha256:{hashlib.sha256(data).hexdigest()}"
    manifest_path.write_text(json.dumps(manifest))


def lower_limits(core: Any) -> None:
    for number in (resource.RLIMIT_NPROC, RLIMIT_SIGPENDING):
        here = resource.getrlimit(number)[1]
        if core.tc.rlimits.rlimits and here != resource.RLIM_INFINITY:
            limit = core.tc.rlimits.rlimits[number]
            limit.cur, limit.max = min(limit.cur, here), min(limit.max, here)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the golden is of an x86-64 machine")
@pytest.mark.case("a checkpoint of the first format", cases.RESTORED)
def test_a_checkpoint_of_the_first_format_is_restored(nodes: Nodes, run_pod: RunPod) -> None:
    path = put(nodes)
    assert checkpoints.read(path).version == 1
    target = run_pod(nodes.b, spec())
    counted = [int(word) for word in target.wait_for_log("count", "\n40\n").split()]
    assert counted == list(range(1, len(counted) + 1))
    (record,) = (record for record in checkpoints.outcomes(target))
    assert "has not kept what no image of CRIU holds" in str(record["warnings"])


@pytest.mark.case("a checkpoint of a later format", cases.REFUSED)
def test_a_checkpoint_of_a_later_format_asks_for_an_upgrade(nodes: Nodes) -> None:
    path = put(nodes) / manifests.FILE_NAME
    manifest = json.loads(path.read_text()) | {"version": manifests.VERSION + 1, "new": True}
    path.write_text(json.dumps(manifest))
    reason = cases.refusal(nodes, spec())
    assert f"version is {manifests.VERSION + 1}" in reason
    assert "upgrade grit on this node" in reason
