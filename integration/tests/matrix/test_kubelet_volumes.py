"""A pod with volumes of the kinds that kubelet mounts, and with a container more than it had."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from grit_runtime.proto import cri_pb2
from integration.node import images
from integration.pods import checkpoints, kubelet
from integration.pods.pod_spec import ContainerSpec, EmptyDir, HostPath, PodSpec, VolumeMount
from integration.tests.matrix import cases

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.node.node import Node
    from integration.pods.kubelet import Pod
    from integration.tests.conftest import Nodes

pytestmark = pytest.mark.usefixtures("fresh_nodes")

# Counts in a file of the claim that stays open and in one of the shared volume; says with each
# count what the configuration is and what the node has mounted.
WRITE = """
import os, time
held = open("/claim/count", "w+")
count = 0
while True:
    count += 1
    held.seek(0)
    held.write("%10d" % count)
    held.flush()
    with open("/work/new", "w") as file:
        file.write(str(count))
    os.replace("/work/new", "/work/count")
    with open("/config/key") as file:
        print(count, file.read(), *os.listdir("/below"), flush=True)
    time.sleep(0.05)
"""
READ = (
    "until [ -e /work/count ]; do sleep 0.1; done; while cat /work/count; do echo; sleep 0.1; done"
)
ADDED = "echo added; while :; do sleep 1; done"

WORK = VolumeMount("work", "/work")
BELOW = VolumeMount("below", "/below", propagation=cri_pb2.PROPAGATION_HOST_TO_CONTAINER)
CLAIM, CONFIG, SHARED = Path("/srv/claim"), Path("/srv/config"), Path("/srv/below")

# A configMap as kubelet lays it out, so that it can replace all of it at once; $1 is its time.
LAY_OUT = f"""
mkdir -p {CLAIM} {CONFIG}/..$1 {SHARED}
mount -t tmpfs claim {CLAIM}
printf %s "of $1" >{CONFIG}/..$1/key
ln -s ..$1 {CONFIG}/..data
ln -s ..data/key {CONFIG}/key
mount --bind {SHARED} {SHARED}
mount --make-shared {SHARED}
"""
TAKE_AWAY = f"umount {SHARED}/late; umount {SHARED} {CLAIM}; rm -rf {CLAIM} {CONFIG} {SHARED}"


def spec(name: str, *added: ContainerSpec, **annotations: str) -> PodSpec:
    python = ("/usr/bin/python3", "-c", WRITE)
    config = VolumeMount("config", "/config", readonly=True)
    mounts = (WORK, BELOW, VolumeMount("claim", "/claim"), config)
    writer = ContainerSpec(name="writer", image=images.PYTHON, command=python, mounts=mounts)
    return PodSpec(
        name=name,
        containers=(writer, shell("reader", READ, WORK), *added),
        volumes=(
            EmptyDir("work"),
            HostPath("claim", str(CLAIM)),
            HostPath("config", str(CONFIG)),
            HostPath("below", str(SHARED)),
        ),
        annotations=tuple(
            (f"grit.dev/{key.replace('_', '-')}", value) for key, value in annotations.items()
        ),
    )


def shell(name: str, script: str, *mounts: VolumeMount) -> ContainerSpec:
    command = ("/bin/sh", "-c", script)
    return ContainerSpec(name=name, image=images.BUSYBOX, command=command, mounts=mounts)


def lay_out(node: Node, stamp: str) -> None:
    node.run(["sh", "-ec", LAY_OUT, "sh", stamp])


@pytest.fixture(scope="module")
def moved(nodes: Nodes, fresh_nodes: None) -> Iterator[Pod]:  # noqa: ARG001 -- emptied before
    """The pod on node B, where the claim has followed it and the rest is node B's own."""
    lay_out(nodes.a, "2026_01_01_10_20_30.1")
    lay_out(nodes.b, "2026_02_02_10_20_30.2")
    with kubelet.running(nodes.a, spec("volumes-a")) as source:
        source.wait_for_log("writer", "\n5 of 2026_01_01_10_20_30.1\n")
        source.wait_for_log("reader", "5\n")
        cases.move(nodes, source, "volumes", "--capture", "emptydir:work")
    shutil.copy(nodes.a.path(CLAIM / "count"), nodes.b.path(CLAIM / "count"))
    target = spec("volumes-b", shell("added", ADDED), restore_name="volumes")
    with kubelet.running(nodes.b, target) as pod:
        yield pod
    for node in nodes:
        node.run(["sh", "-c", TAKE_AWAY])


def reached(pod: Pod) -> int:
    """How far the writer has counted; each number is in its log once."""
    counted = [int(line.split()[0]) for line in pod.logs("writer").splitlines()]
    assert counted == list(range(1, len(counted) + 1))
    return counted[-1]


@pytest.mark.case("a claim that follows the pod, a file open in it", cases.RESTORED)
def test_a_file_of_a_claim_is_written_on(moved: Pod) -> None:
    count = reached(moved) + 5
    moved.wait_for_log("writer", f"\n{count} ")
    assert int(moved.node.path(CLAIM / "count").read_text()) >= count


@pytest.mark.case("a configMap, other in the new pod", cases.RESTORED)
def test_configuration_is_the_new_pods(moved: Pod) -> None:
    moved.wait_for_log("writer", " of 2026_02_02_10_20_30.2\n")
    reached(moved)


@pytest.mark.case("an emptyDir that two containers share, captured", cases.RESTORED)
def test_a_shared_volume_is_one_again(moved: Pod) -> None:
    count = reached(moved)
    deadline = time.monotonic() + 30
    while int(moved.logs("reader").split()[-1]) < count + 10:
        assert time.monotonic() < deadline, moved.logs("reader")[-100:]
        time.sleep(kubelet.POLL_S)


@pytest.mark.case("mountPropagation: HostToContainer", cases.RESTORED)
def test_what_the_node_mounts_reaches_the_container(moved: Pod) -> None:
    moved.node.run(["sh", "-ec", f"mkdir {SHARED}/late; mount -t tmpfs late {SHARED}/late"])
    mounted = moved.exec_sync("writer", ["/bin/sh", "-c", "grep /below/late /proc/self/mounts"])
    assert mounted.stdout.startswith(b"late /below/late tmpfs ")
    moved.wait_for_log("writer", "late\n")


@pytest.mark.case("a container that the checkpoint does not list", cases.COLD)
def test_an_added_container_starts_from_its_image(moved: Pod) -> None:
    assert moved.wait_for_log("added", "added\n") == "added\n"
    became = {one["container"]: one for one in checkpoints.outcomes(moved)}
    assert became["added"]["outcome"] == "cold"
    assert became["added"]["reason"] == "the checkpoint does not list this container"
    assert [became[name]["outcome"] for name in ("writer", "reader")] == ["restored"] * 2
