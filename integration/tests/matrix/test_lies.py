"""A CRIU that restores other than what was checked is found out before a task of it runs.

Its preload has it read images that lie in /run/criu-lies in the place of the checkpoint's. A label
of an LSM cannot be proved so: the nodes have none.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pytest

from grit_runtime.proto import cri_pb2
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image
from integration.pods import checkpoints, kubelet
from integration.pods.pod_spec import HostPath, PodSpec, Security, VolumeMount
from integration.tests.matrix import cases, single

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from integration.node.node import Node
    from integration.tests.conftest import Nodes

    Change = Callable[[criu.core_entry], object]

pytestmark = pytest.mark.usefixtures("fresh_nodes")

NAME = "lied"
LIES = Path("/run/criu-lies")
ASKING = (("grit.dev/restore-name", NAME), ("grit.dev/clone", "true"))
CODE = """
file = open("/etc/passwd", "rb", buffering=0)
file.read(10)
check(lambda: None)
"""


def spec(annotations: single.Annotations = ()) -> PodSpec:
    return single.pod(
        NAME,
        CODE,
        annotations,
        security=Security(
            seccomp=cri_pb2.SecurityProfile.RuntimeDefault,
            no_new_privs=True,
            drop_capabilities=("CHOWN",),
            groups=(2000,),
        ),
        volumes=(HostPath("volume", "/srv/lied"),),
        mounts=(VolumeMount("volume", "/volume", readonly=True),),
    )


@pytest.fixture(scope="module")
def checkpointed(nodes: Nodes, fresh_nodes: None) -> Path:  # noqa: ARG001 -- emptied before
    """The images on node B of the container, whose pod has gone."""
    for node in nodes:
        node.run(["mkdir", "-p", "/srv/lied"])
    with kubelet.running(nodes.a, spec()) as pod:
        pod.wait_for_log(single.CONTAINER, "ready\n")
        cases.move(nodes, pod, NAME)
    return checkpoints.directory(nodes.b, NAME) / single.CONTAINER / "checkpoint"


@contextmanager
def lie(node: Node, image: criu_image.Image) -> Iterator[None]:
    """Have the node's CRIU read this image in the place of that of its name."""
    lies = node.path(LIES)
    lies.mkdir()
    (lies / image.name).write_bytes(criu_image.serialize(image))
    try:
        yield
    finally:
        node.run(["rm", "-r", str(LIES)])


def load(path: Path) -> criu_image.Image:
    return criu_image.parse(path.read_bytes(), name=path.name)


def capable(core: criu.core_entry) -> None:
    for words in (core.thread_core.creds.cap_bnd, core.thread_core.creds.cap_prm):
        words[0] |= 1  # CAP_CHOWN


def privileged(core: criu.core_entry) -> None:
    core.thread_core.creds.no_new_privs = 0
    core.thread_core.seccomp_mode = 0
    core.thread_core.ClearField("seccomp_filter")


def in_other_group(core: criu.core_entry) -> None:
    core.thread_core.creds.groups.append(4000)


def nice(core: criu.core_entry) -> None:
    core.thread_core.sched_nice = -5


def spared(core: criu.core_entry) -> None:
    core.tc.oom_score_adj = 0


def limited(core: criu.core_entry) -> None:
    core.tc.rlimits.rlimits[7].cur = 17


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (capable, "CapPrm is 0x"),
        (privileged, "Seccomp is 0, expected 2"),
        (in_other_group, "Groups is [0, 2000, 4000], expected [0, 2000]"),
        (nice, "nice value is -5, expected 0"),
        (spared, "oom_score_adj is "),
        (limited, "resource limit 7 is 17/"),
    ],
)
@pytest.mark.case("CRIU gives a task more or less than the dump says", cases.REFUSED)
def test_a_task_that_came_back_as_another_never_runs(
    nodes: Nodes, checkpointed: Path, change: Change, fact: str
) -> None:
    image = load(checkpointed / "core-1.img")
    core = criu_image.entry(image, criu.core_entry)
    change(core)
    with lie(nodes.b, criu_image.with_entry(image, 0, core)):
        reason = cases.refusal(nodes, spec(ASKING))
    assert "CRIU has not restored what was dumped" in reason
    assert fact in reason


@pytest.mark.case("CRIU opens a file at another position", cases.REFUSED)
def test_a_file_that_stands_elsewhere_is_found_out(nodes: Nodes, checkpointed: Path) -> None:
    image = load(checkpointed / "files.img")
    entries = criu_image.entries(image, criu.file_entry)
    (at,) = (at for at, e in enumerate(entries) if e.reg.name == b"/etc/passwd")
    entries[at].reg.pos = 3
    with lie(nodes.b, criu_image.with_entry(image, at, entries[at])):
        reason = cases.refusal(nodes, spec(ASKING))
    assert "is at position 3, expected 10" in reason


@pytest.mark.case("CRIU mounts a volume writable", cases.RESTORED)
def test_a_volume_that_came_back_writable_is_made_read_only(
    nodes: Nodes, checkpointed: Path
) -> None:
    (path,) = checkpointed.glob("mountpoints-*.img")
    image = load(path)
    entries = criu_image.entries(image, criu.mnt_entry)
    (at,) = (at for at, e in enumerate(entries) if e.mountpoint == b"/volume")
    entries[at].flags &= ~1
    with (
        lie(nodes.b, criu_image.with_entry(image, at, entries[at])),
        kubelet.running(nodes.b, spec(ASKING)) as pod,
    ):
        write = ["/bin/sh", "-c", "echo x >/volume/x"]
        assert b"Read-only file system" in pod.exec_sync(single.CONTAINER, write).stderr
