"""What a volume's mount forbids, it forbids after every move."""

from __future__ import annotations

import pytest

from grit_runtime.proto import cri_pb2
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image
from integration.pods import checkpoints
from integration.pods.pod_spec import EmptyDir, HostPath, VolumeMount
from integration.tests.matrix import cases, single

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from integration.pods.pod_spec import PodSpec
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

SLAVE = cri_pb2.PROPAGATION_HOST_TO_CONTAINER
VOLUMES = (
    HostPath("tree", "/srv/tree"),
    HostPath("sub", "/srv/tree/sub"),
    HostPath("view", "/srv/view"),
    HostPath("shared", "/srv/shared"),
    EmptyDir("disk"),
    EmptyDir("memory", in_memory=True),
)
# Volumes of one file system, one of them twice, parts and a whole, writable before and after.
MOUNTS = (
    VolumeMount("tree", "/m/tree", readonly=True),
    VolumeMount("sub", "/m/sub", readonly=True),
    VolumeMount("view", "/m/view", readonly=True),
    VolumeMount("tree", "/m/again", readonly=True),
    VolumeMount("shared", "/m/slave", readonly=True, propagation=SLAVE),
    VolumeMount("shared", "/m/slave2", readonly=True, propagation=SLAVE),
    VolumeMount("shared", "/m/private", readonly=True),
    VolumeMount("disk", "/m/disk", readonly=True),
    VolumeMount("disk", "/m/part", readonly=True, sub_path="part"),
    VolumeMount("disk", "/m/writable"),
    VolumeMount("memory", "/m/memory", readonly=True),
    VolumeMount("memory", "/m/memory2", readonly=True),
)
LAY_OUT = """
mkdir -p /srv/tree/sub /srv/view /srv/shared
echo x >/srv/tree/file
echo y >/srv/tree/sub/file
mount --bind /srv/tree /srv/view
mount -o remount,bind,nosuid,nodev,noexec /srv/view
mount --bind /srv/shared /srv/shared
mount --make-shared /srv/shared
"""
TAKE_AWAY = "umount /srv/view /srv/shared; rm -rf /srv"
# Says what the kernel shows of each mount, and whether writing there is refused.
PROBE = """
files = [open("/m/tree/file"), open("/m/sub/file"), open("/m/again/sub/file")]

def probe():
    found = {}
    for line in open("/proc/self/mountinfo"):
        words = line.split()
        if words[4].startswith("/m/"):
            tags = [word.split(":")[0] for word in words[6:words.index("-")]]
            found[words[4]] = (words[5], tags)
    for place in found:
        try:
            os.close(os.open(place + "/new", os.O_CREAT | os.O_WRONLY))
            found[place] += ("may write",)
        except OSError as error:
            found[place] += (error.errno,)
    return found, [file.seek(0) or file.read() for file in files]
"""


def spec(name: str, code: str) -> PodSpec:
    return single.pod(name, PROBE + code, volumes=VOLUMES, mounts=MOUNTS)


@pytest.fixture
def laid_out(nodes: Nodes) -> Iterator[None]:
    for node in nodes:
        node.run(["sh", "-ec", LAY_OUT])
    yield
    for node in nodes:
        node.run(["sh", "-ec", TAKE_AWAY])


@pytest.mark.usefixtures("laid_out")
@pytest.mark.case("read-only volumes of one file system, over two moves", cases.RESTORED)
def test_what_could_not_be_written_cannot_be_after_two_moves(nodes: Nodes, run_pod: RunPod) -> None:
    first = single.started(nodes, run_pod, spec("flags", "check(probe)"))
    cases.move(nodes, first, "flags")
    second = run_pod(nodes.b, single.again(first.spec, (("grit.dev/restore-name", "flags"),)))
    checkpoints.take(second, "flags2", "--after", "stopped", "--pod-is-going")
    checkpoints.carry(nodes.b, nodes.a, "flags2")
    third = run_pod(nodes.a, single.again(first.spec, (("grit.dev/restore-name", "flags2"),)))
    assert "RESULT SAME" in single.go_on(third)


def widen(images_dir: Path, places: set[str]) -> None:
    """Make the dump say that mounts were writable, as those that an older version restored."""
    (path,) = images_dir.glob("mountpoints-*.img")
    image = criu_image.parse(path.read_bytes(), name=path.name)
    for index, entry in enumerate(criu_image.entries(image, criu.mnt_entry)):
        if entry.mountpoint.decode() in places:
            entry.flags &= ~1
            image = criu_image.with_entry(image, index, entry)
    path.write_bytes(criu_image.serialize(image))


@pytest.mark.usefixtures("laid_out")
@pytest.mark.case("a volume that an older version restored writable", cases.RESTORED)
def test_what_was_restored_wider_than_its_spec_comes_back_as_the_spec_says(
    nodes: Nodes, run_pod: RunPod
) -> None:
    source = single.started(nodes, run_pod, spec("wider", "check(probe)"))
    cases.move(nodes, source, "wider")
    path = checkpoints.directory(nodes.b, "wider")
    widen(path / single.CONTAINER / "checkpoint", {"/m/again", "/m/part"})
    checkpoints.seal_anew(path)
    target = run_pod(nodes.b, single.again(source.spec, (("grit.dev/restore-name", "wider"),)))
    assert "RESULT SAME" in single.go_on(target)
    assert "older version" not in nodes.b.run(["grit", "status"]).stdout
    enter = ["nsenter", f"--target={target.pid(single.CONTAINER)}", "--mount", "--pid"]
    nodes.b.run([*enter, "mount", "-o", "remount,bind,rw", "/m/again"])
    named = nodes.b.run(["grit", "status", target.spec.uid]).stdout
    assert "was restored by an older version with /m/again not ro" in named
