"""Mounts that the new pod has from elsewhere, in another order, or besides."""

from __future__ import annotations

import pytest

from integration import images
from integration.matrix import cases
from integration.pod_spec import ContainerSpec, EmptyDir, HostPath, PodSpec, VolumeMount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.conftest import Nodes, RunPod
    from integration.node import Node

pytestmark = pytest.mark.usefixtures("fresh_nodes")

CONTAINER = "reader"

# Says what is in a file that it has had open all the time, and by its name.
READ = """
import time
held = open("/data/file")
while True:
    held.seek(0)
    with open("/data/file") as named:
        print(held.read(), named.read(), flush=True)
    time.sleep(0.05)
"""
DATA = VolumeMount("data", "/data")
SCRATCH = VolumeMount("scratch", "/scratch")
EXTRA = VolumeMount("extra", "/extra")


def put(node: Node, directory: str, content: str) -> HostPath:
    """A directory of the node that holds a file."""
    node.run(["sh", "-ec", f'mkdir -p {directory}; printf "%s" {content} > {directory}/file'])
    return HostPath("data", directory)


def reader(
    data: HostPath, mounts: tuple[VolumeMount, ...], annotations: tuple[tuple[str, str], ...] = ()
) -> PodSpec:
    command = ("/usr/bin/python3", "-c", READ)
    container = ContainerSpec(name=CONTAINER, image=images.PYTHON, command=command, mounts=mounts)
    volumes = (data, EmptyDir("scratch"), EmptyDir("extra"))
    return PodSpec(name="reader", containers=(container,), volumes=volumes, annotations=annotations)


@pytest.mark.case("hostPath elsewhere, mounts in another order, one more", cases.RESTORED)
def test_mounts_are_the_new_pods(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, reader(put(nodes.a, "/srv/here", "old"), (DATA, SCRATCH)))
    source.wait_for_log(CONTAINER, "old old\n" * 3)
    cases.move(nodes, source, "reader")
    there = put(nodes.b, "/srv/there", "new")
    asking = (("grit.dev/restore-name", "reader"),)
    target = run_pod(nodes.b, reader(there, (EXTRA, SCRATCH, DATA), asking))
    target.wait_for_log(CONTAINER, "old old\nnew new\n")


@pytest.mark.case("a hostPath that is read-only in the new pod alone", cases.REFUSED)
def test_a_mount_that_was_writable_stays_no_more_than_the_pod_grants(
    nodes: Nodes, run_pod: RunPod
) -> None:
    source = run_pod(nodes.a, reader(put(nodes.a, "/srv/writable", "old"), (DATA,)))
    source.wait_for_log(CONTAINER, "old old\n")
    cases.move(nodes, source, "writable")
    asking = (("grit.dev/restore-name", "writable"),)
    spec = reader(put(nodes.b, "/srv/writable", "old"), (DATA._replace(readonly=True),), asking)
    assert "/data" in cases.refusal(nodes, spec)
