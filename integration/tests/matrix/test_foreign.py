"""Checkpoints that other programs made."""

from __future__ import annotations

import dataclasses
import json
import shutil
from typing import NamedTuple

import pytest

from integration.node import images
from integration.pods import checkpoints, foreign_checkpoints, kubelet
from integration.pods.pod_spec import ContainerSpec, EmptyDir, PodSpec, VolumeMount
from integration.tests.matrix import cases

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from integration.pods.kubelet import Pod
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

# Counts in memory alone, so that a layer saved a moment after the dump still fits it, and says with
# each count which process it is.
COUNT = """
import os, time
process = os.urandom(8).hex()
os.remove("/etc/group")
open("/made", "w").write("by the source")
count = 0
while True:
    count += 1
    print(process, count, flush=True)
    time.sleep(0.05)
"""


def count_pod(name: str, **annotations: str) -> PodSpec:
    container = ContainerSpec(
        name="main",
        image=images.PYTHON,
        command=("/usr/bin/python3", "-c", COUNT),
        mounts=(VolumeMount("scratch", "/scratch"),),
    )
    asked = tuple(
        (f"grit.dev/{key.replace('_', '-')}", value) for key, value in annotations.items()
    )
    return PodSpec(
        name=name, containers=(container,), volumes=(EmptyDir("scratch"),), annotations=asked
    )


class Dumped(NamedTuple):
    """A process, dumped by CRIU with and without a network of its own; on node A."""

    process: str
    external: Path
    whole: Path


@pytest.fixture(scope="module")
def dumped(nodes: Nodes) -> Iterator[Dumped]:
    with kubelet.running(nodes.a, count_pod("source")) as source:
        process = counting(source)
        whole = foreign_checkpoints.dump_by_criu(
            source, "whole", "--leave-running", leaves_network=False
        )
        yield Dumped(process, foreign_checkpoints.dump_by_criu(source, "external"), whole)


def counting(source: Pod) -> str:
    """The process that counts in *source*, once it has."""
    return source.wait_for_log("main", " 10\n").split()[0]


def assert_goes_on(target: Pod, process: str) -> None:
    """*process* counts in *target*, where it finds its files and the new pod's host name."""
    target.wait_for_log("main", f"{process} ")
    lines = len(target.logs("main").splitlines())
    look = ["/bin/sh", "-c", "cat /made; ls /etc; cat /etc/hostname"]
    seen = target.exec_sync("main", look).stdout
    assert seen.startswith(b"by the source")
    assert b"group" not in seen
    assert seen.endswith(f"{target.spec.name}\n".encode())
    counts = [line.split() for line in target.logs("main").splitlines()]
    assert {name for name, _ in counts} == {process}
    first = int(counts[0][1])
    target.wait_for_log("main", f"{process} {first + lines + 20}\n")


@pytest.mark.case("a dump by CRIU alone (ext-mount-map auto), upstream's layout", cases.RESTORED)
def test_a_dump_by_criu_itself_goes_on(nodes: Nodes, run_pod: RunPod, dumped: Dumped) -> None:
    there = nodes.b.path(checkpoints.ROOT / "default/external")
    shutil.copytree(dumped.external, there)
    target = run_pod(nodes.b, count_pod("target", restore_name="external"))
    assert_goes_on(target, dumped.process)
    log = nodes.b.path(cases.LOG_DIR / "default/target/main/grit.log").read_text()
    assert 'msg="no manifest: its files cannot be verified"' in log


@pytest.mark.case("a dump by CRIU alone with a network of its own", cases.REFUSED)
def test_a_dump_with_its_own_network_is_refused(nodes: Nodes, dumped: Dumped) -> None:
    shutil.copytree(dumped.whole, nodes.b.path(checkpoints.ROOT / "default/whole"))
    reason = cases.refusal(nodes, count_pod("target", restore_name="whole"))
    assert "the dump brings a network of its own" in reason
    assert "--external net[INODE]:extRootNetNS" in reason


@pytest.mark.case("upstream's layout while it is still written", cases.REFUSED)
def test_a_directory_that_upstream_still_writes_is_incomplete(nodes: Nodes, dumped: Dumped) -> None:
    there = nodes.b.path(checkpoints.ROOT / "default/writing")
    shutil.copytree(dumped.external, there)
    (there / "sidecar-work").mkdir()
    reason = cases.refusal(nodes, count_pod("target", restore_name="writing"))
    assert "checkpoint /mnt/grit-agent/default/writing is incomplete" in reason


@pytest.mark.case("an archive of containerd's CRI", cases.RESTORED)
def test_an_archive_of_containerd_goes_on(nodes: Nodes, run_pod: RunPod) -> None:
    if not foreign_checkpoints.has_cri_checkpoints(nodes.a):
        pytest.skip("containerd 1.7 answers CheckpointContainer with: not implemented")
    source = run_pod(nodes.a, count_pod("source"))
    process = counting(source)
    path = checkpoints.ROOT / "default/exported.tar"
    nodes.a.path(path).parent.mkdir(mode=0o700, exist_ok=True)
    foreign_checkpoints.checkpoint_by_cri(source, path)
    nodes.b.path(path).parent.mkdir(mode=0o700, exist_ok=True)
    shutil.copy(nodes.a.path(path), nodes.b.path(path))
    assert_goes_on(run_pod(nodes.b, count_pod("target", restore_name="exported")), process)
    assert list(nodes.b.path(cases.COPIES_DIR).iterdir()) == []


@pytest.mark.case("an archive in podman's layout, packed by hand", cases.RESTORED)
def test_an_archive_in_podmans_layout_goes_on(
    nodes: Nodes, run_pod: RunPod, dumped: Dumped
) -> None:
    path = checkpoints.ROOT / "default/podman.tar.gz"
    nodes.b.path(path).parent.mkdir(mode=0o700, exist_ok=True)
    foreign_checkpoints.pack_as_podman(
        dumped.external / "main", nodes.b.path(path), deleted=["/etc/group"]
    )
    assert "1 python3 (uid 0)" in nodes.b.run(["grit", "inspect", str(path)]).stdout
    assert_goes_on(run_pod(nodes.b, count_pod("target", checkpoint=str(path))), dumped.process)
    assert list(nodes.b.path(cases.COPIES_DIR).iterdir()) == []


@pytest.mark.case("an archive with a member that leads out of it", cases.REFUSED)
def test_an_archive_that_leads_out_is_refused(nodes: Nodes) -> None:
    path = nodes.b.path(checkpoints.ROOT / "default/out.tar")
    path.parent.mkdir(mode=0o700, exist_ok=True)
    foreign_checkpoints.pack(path, {"../../../etc/cron.d/job": b"* * * * * root true\n"})
    reason = cases.refusal(nodes, count_pod("target", restore_name="out"))
    assert "expected a path beneath the root" in reason
    assert not nodes.b.path(cases.COPIES_DIR / "etc").exists()
    assert list(nodes.b.path(cases.COPIES_DIR).iterdir()) == []


@pytest.mark.case("grit inspect --against a pod that lacks a volume and has another", cases.REFUSED)
def test_the_plan_is_shown_before_anything_runs(
    nodes: Nodes, run_pod: RunPod, dumped: Dumped
) -> None:
    (main,) = count_pod("other").containers
    spec = PodSpec(
        name="other",
        containers=(dataclasses.replace(main, mounts=(VolumeMount("models", "/models"),)),),
        volumes=(EmptyDir("models"),),
    )
    run_pod(nodes.a, spec)
    directory = f"/mnt/grit-agent/default/{dumped.external.name}"
    command = ["grit", "inspect", directory, "--against", "default/other"]
    shown = nodes.a.run(command, check=False)
    assert shown.returncode == 1
    line = "/scratch; add to volumeMounts: - {name: scratch, mountPath: /scratch}"
    assert f"  missing   {line}\n" in shown.stdout
    assert "  extra     /models" in shown.stdout
    assert "  refused: the new pod mounts nothing at /scratch" in shown.stdout
    (plan,) = json.loads(nodes.a.run([*command, "--json"], check=False).stdout)
    assert plan["kept"] == []
    moved = {mount["destination"]: mount["source"] for mount in plan["remapped"]}
    assert spec.uid in moved["/etc/hosts"]
    assert moved["/etc/hostname"].endswith("/hostname")
    whole = nodes.a.run(["grit", "inspect", directory]).stdout
    assert "of another program, without a manifest" in whole
    assert "1 python3 (uid 0)" in whole
