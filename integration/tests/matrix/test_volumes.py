"""What lies in a pod's volumes, and in its /dev/shm."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest

from integration.node import images
from integration.node.cri import CriError
from integration.pods import checkpoints, kubelet
from integration.pods.pod_spec import ContainerSpec, EmptyDir, PodSpec, VolumeMount
from integration.tests.matrix import cases

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.node.node import Node
    from integration.pods.kubelet import Pod
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

CONTAINER = "keeper"

# Counts in files that stay open and in one that stays mapped; prints what they say.
KEEP = """
import mmap, os, sys, time
files = []
for path in sys.argv[1:]:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    file = open(path, "w+b")
    file.write(b"%10d" % 0)
    file.flush()
    files.append(mmap.mmap(file.fileno(), 10) if path.endswith(".map") else file)
count = 0
while True:
    count += 1
    said = []
    for file in files:
        file.seek(0)
        assert file.read(10) == b"%10d" % (count - 1)
        file.seek(0)
        file.write(b"%10d" % count)
        file.flush()
    print(count, flush=True)
    time.sleep(0.05)
"""


def keeper(
    name: str,
    *paths: str,
    mounts: tuple[VolumeMount, ...] = (),
    volumes: tuple[EmptyDir, ...] = (),
    **asked: str,
) -> PodSpec:
    """A pod that counts in the files *paths*; *asked* are annotations."""
    container = ContainerSpec(
        name=CONTAINER,
        image=images.PYTHON,
        command=("/usr/bin/python3", "-c", KEEP, *paths),
        mounts=mounts,
    )
    annotations = tuple((f"grit.dev/{key.replace('_', '-')}", asked[key]) for key in asked)
    return PodSpec(name=name, containers=(container,), annotations=annotations, volumes=volumes)


def wait_for_count(pod: Pod, count: int) -> None:
    pod.wait_for_log(CONTAINER, f"\n{count}\n")


def assert_goes_on(pod: Pod) -> None:
    wait_for_count(pod, int(pod.logs(CONTAINER).split()[-1]) + 5)


@pytest.mark.case("files in /dev/shm, open and mapped, nothing said", cases.RESTORED)
def test_files_in_shm_go_along(nodes: Nodes, run_pod: RunPod) -> None:
    paths = ("/dev/shm/open", "/dev/shm/below/a.map")
    source = run_pod(nodes.a, keeper("shm", *paths))
    source.exec_sync(CONTAINER, ["/bin/sh", "-c", "echo not open >/dev/shm/closed"])
    wait_for_count(source, 5)
    cases.move(nodes, source, "shm")
    assert checkpoints.read(checkpoints.directory(nodes.b, "shm")).captured == ("shm",)
    target = run_pod(nodes.b, keeper("shm", *paths, restore_name="shm"))
    assert_goes_on(target)
    assert target.exec_sync(CONTAINER, ["cat", "/dev/shm/closed"]).stdout == b"not open\n"
    target.stop(grace_period_s=0)
    assert not nodes.b.path(Path("/run/grit/pods") / target.sandbox_id).exists()


VOLUMES = (EmptyDir("disk"), EmptyDir("memory", in_memory=True), EmptyDir("parts"))
MOUNTS = (
    VolumeMount("disk", "/disk"),
    VolumeMount("memory", "/memory"),
    VolumeMount("parts", "/part", sub_path="one"),
)
ON_VOLUMES = ("/disk/open", "/memory/a.map", "/part/open")


@pytest.mark.case("emptyDirs on disk, in memory, by subPath, captured", cases.RESTORED)
def test_empty_dirs_go_along(nodes: Nodes, run_pod: RunPod) -> None:
    capture = "emptydir:disk, emptydir:memory"
    source = run_pod(
        nodes.a, keeper("dirs", *ON_VOLUMES, mounts=MOUNTS, volumes=VOLUMES, capture=capture)
    )
    wait_for_count(source, 5)
    refused = checkpoints.take(source, "dirs", check=False)
    assert "writes to /part/open, which would stay behind" in refused.stderr
    assert "--capture emptydir:parts" in refused.stderr
    assert checkpoints.left_by_checkpoints(nodes.a) == []
    cases.move(nodes, source, "dirs", "--capture", "emptydir:parts")
    spec = keeper("dirs", *ON_VOLUMES, mounts=MOUNTS, volumes=VOLUMES, restore_name="dirs")
    target = run_pod(nodes.b, spec)
    assert_goes_on(target)


@pytest.mark.case("an emptyDir that is not captured, a file open in it", cases.REFUSED)
def test_a_volume_that_would_stay_behind_is_named(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(
        nodes.a, keeper("behind", "/disk/open", mounts=MOUNTS[:1], volumes=VOLUMES[:1])
    )
    wait_for_count(source, 3)
    refused = checkpoints.take(source, "behind", check=False)
    assert "say grit.dev/capture: emptydir:disk or --capture emptydir:disk" in refused.stderr
    strange = checkpoints.take(source, "behind", "--capture", "emptydir:other", check=False)
    assert "capture emptydir:other: no running container" in strange.stderr
    assert_goes_on(source)


# Only reads, in one of several ways; /lib is a link to /usr/lib in the image.
USE = {
    "open": "held = open('/lib/data/file')",
    "mapped": "file = open('/lib/data/file', 'rb'); held = mmap.mmap(file.fileno(), 1, prot=1)\n"
    "file.close(); os.closerange(3, 100)",
    "working directory": "os.chdir('/lib/data/below')",
}
READ = """
import mmap, os, time
{use}
n = 0
while True:
    n += 1
    print(n, flush=True)
    time.sleep(0.05)
"""


def reading(name: str, use: str, *, init: bool, **asked: str) -> PodSpec:
    """A pod that has something of an emptyDir in *use*, which an *init* container has filled."""
    mounts = (VolumeMount("data", "/lib/data"),)
    fill = ContainerSpec(
        name="init",
        image=images.BUSYBOX,
        command=("/bin/sh", "-c", "mkdir /lib/data/below; echo x >/lib/data/file"),
        mounts=mounts,
    )
    read = ContainerSpec(
        name=CONTAINER,
        image=images.PYTHON,
        command=("/usr/bin/python3", "-c", READ.format(use=USE[use])),
        mounts=mounts,
    )
    return PodSpec(
        name=name,
        containers=(fill, read) if init else (read,),
        annotations=tuple((f"grit.dev/{key.replace('_', '-')}", asked[key]) for key in asked),
        volumes=(EmptyDir("data"),),
    )


@contextmanager
def running_reader(node: Node, spec: PodSpec) -> Iterator[Pod]:
    """*spec* with its emptyDir filled before the reader starts."""
    with kubelet.sandbox(node, spec) as pod:
        if len(spec.containers) == 2:
            pod.create("init")
            pod.start("init")
            assert pod.wait_exited("init").exit_code == 0
        else:
            volume = pod.pod_dir / "volumes/kubernetes.io~empty-dir/data"
            node.run(["sh", "-c", f"mkdir {volume}/below; echo x >{volume}/file"])
        pod.create(CONTAINER)
        pod.start(CONTAINER)
        yield pod


@pytest.mark.case("an emptyDir that is not captured, only read", cases.REFUSED)
def test_what_nobody_would_put_into_a_volume_again_is_named(nodes: Nodes) -> None:
    for use in USE:
        with running_reader(nodes.a, reading("reader", use, init=False)) as source:
            wait_for_count(source, 3)
            refused = checkpoints.take(source, "reader", check=False)
            assert " needs /usr/lib/data/" in refused.stderr
            assert "say grit.dev/capture: emptydir:data or --cap" in refused.stderr
            assert_goes_on(source)


@pytest.mark.case("an emptyDir that is not captured, filled by an init container", cases.RESTORED)
def test_what_an_init_container_fills_again_need_not_be_captured(nodes: Nodes) -> None:
    with running_reader(nodes.a, reading("reader", "mapped", init=True)) as source:
        wait_for_count(source, 3)
        cases.move(nodes, source, "reader")
    asking = reading("reader", "mapped", init=True, restore_name="reader")
    with running_reader(nodes.b, asking) as target:
        assert_goes_on(target)


@pytest.mark.case("a volume too small for what was captured", cases.REFUSED)
def test_a_failed_restore_leaves_volumes_empty(nodes: Nodes, run_pod: RunPod) -> None:
    source = run_pod(nodes.a, keeper("small", "/dev/shm/open"))
    source.exec_sync(CONTAINER, ["/bin/sh", "-c", "head -c 1000000 /dev/zero >/dev/shm/large"])
    wait_for_count(source, 3)
    cases.move(nodes, source, "small")
    spec = keeper("small", "/dev/shm/open", restore_name="small")
    with kubelet.sandbox(nodes.b, spec) as target:
        shm = shm_dir(target)
        for options, reason in (
            ("size=512k,nr_inodes=100", "volume shm: 1000010 bytes to write and 524288 free"),
            ("size=64m,nr_inodes=1", "No space left on device"),
        ):
            nodes.b.run(["mount", "-o", f"remount,{options}", shm])
            target.create(CONTAINER)
            with pytest.raises(CriError, match=reason):
                target.start(CONTAINER)
            assert checkpoints.left_by_restores(target) == []
            assert nodes.b.run(["ls", shm]).stdout == ""
        nodes.b.run(["mount", "-o", "remount,size=64m,nr_inodes=100", shm])
        target.restart(CONTAINER)
        assert_goes_on(target)


def shm_dir(pod: Pod) -> str:
    """The sandbox's own /dev/shm, on its node."""
    return f"/run/containerd/io.containerd.grpc.v1.cri/sandboxes/{pod.sandbox_id}/shm"
