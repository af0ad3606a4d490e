"""Mounts that the new pod has from elsewhere, in another order, or besides."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from integration.node import images
from integration.pods.pod_spec import (
    ContainerSpec,
    EmptyDir,
    HostPath,
    PodSpec,
    Security,
    VolumeMount,
)
from integration.tests.matrix import cases, single

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.node.node import Node
    from integration.tests.conftest import Nodes, RunPod

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


@pytest.mark.case("a hostPath that is writable in the new pod alone", cases.RESTORED)
def test_a_mount_that_was_read_only_stays_so(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(
        nodes.a, reader(put(nodes.a, "/srv/sealed", "old"), (DATA._replace(readonly=True),))
    )
    source.wait_for_log(CONTAINER, "old old\n")
    cases.move(nodes, source, "sealed")
    asking = (("grit.dev/restore-name", "sealed"),)
    target = run_pod(nodes.b, reader(put(nodes.b, "/srv/sealed", "new"), (DATA,), asking))
    target.wait_for_log(CONTAINER, "new new\n")
    tried = target.exec_sync(CONTAINER, ["sh", "-c", "echo more >>/data/file"])
    assert b"Read-only file system" in tried.stderr


@pytest.mark.case("volumes mounted below another volume, on disk and in memory", cases.RESTORED)
def test_volumes_below_a_volume_are_the_new_pods(nodes: Nodes, run_pod: RunPod) -> None:
    below = (VolumeMount("extra", "/data/extra"), VolumeMount("memory", "/data/deep/memory"))

    def spec(directory: HostPath, annotations: tuple[tuple[str, str], ...] = ()) -> PodSpec:
        plain = reader(directory, (DATA, *below), annotations)
        return replace(plain, volumes=(*plain.volumes, EmptyDir("memory", in_memory=True)))

    source = run_pod(nodes.a, spec(put(nodes.a, "/srv/above", "old")))
    source.wait_for_log(CONTAINER, "old old\n")
    cases.move(nodes, source, "above")
    asking = (("grit.dev/restore-name", "above"),)
    target = run_pod(nodes.b, spec(put(nodes.b, "/srv/above", "new"), asking))
    target.wait_for_log(CONTAINER, "new new\n")
    seen = target.exec_sync(CONTAINER, ["sh", "-c", "cut -d' ' -f2 /proc/mounts"]).stdout.decode()
    assert {"/data", "/data/extra", "/data/deep/memory"} <= set(seen.split())


@pytest.mark.case("an exec that runs during the dump", cases.RESTORED)
def test_an_exec_is_no_part_of_what_moves(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, reader(put(nodes.a, "/srv/entered", "old"), (DATA,)))
    source.wait_for_log(CONTAINER, "old old\n")
    with ThreadPoolExecutor() as threads:
        running = threads.submit(source.exec_sync, CONTAINER, ["sleep", "1000"])
        while b"sleep 1000" not in source.exec_sync(CONTAINER, ["ps", "-o", "args"]).stdout:
            pass
        cases.move(nodes, source, "entered")
        assert running.result().exit_code == 137
    asking = (("grit.dev/restore-name", "entered"),)
    target = run_pod(nodes.b, reader(put(nodes.b, "/srv/entered", "new"), (DATA,), asking))
    target.wait_for_log(CONTAINER, "new new\n")
    assert b"sleep 1000" not in target.exec_sync(CONTAINER, ["ps", "-o", "args"]).stdout


@pytest.mark.case("mounts that a privileged container has made of its own root", cases.RESTORED)
def test_parts_of_the_root_are_where_a_privileged_container_has_bound_them(
    nodes: Nodes, run_pod: RunPod
) -> None:
    program = """
subprocess.run(["/bin/sh", "-ec", '''
    mkdir -p /a/sub /b /c /whole /memory /part
    echo in >/a/file; echo >/one
    mount -o bind /a /b; mount -o bind /a/sub /c; mount -o remount,bind,ro,nosuid /c
    mount -o bind /a/file /one; mount -o bind / /whole
    mount -t tmpfs none /memory; mkdir /memory/sub; mount -o bind /memory/sub /part
'''], check=True)
own = ("/b", "/c", "/one", "/whole", "/memory", "/part")
held = [os.open(name, os.O_RDONLY) for name in ("/b/file", "/one", "/whole/a/file", "/part")]

def seen():
    lines = [line.split()[3:6] for line in open("/proc/self/mountinfo")]
    names = [os.readlink(f"/proc/self/fd/{fd}") for fd in held]
    return [line for line in lines if line[1] in own] + names

check(seen)
"""
    spec = single.pod("own-binds", program, security=Security(privileged=True))
    assert "RESULT SAME" in single.moved(nodes, run_pod, spec)
