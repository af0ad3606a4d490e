"""What a process has open or mapped by name, where the new pod has it otherwise or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration import images
from integration.matrix import cases
from integration.pod_spec import ContainerSpec, HostPath, PodSpec, VolumeMount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.conftest import Nodes, RunPod
    from integration.node import Node

pytestmark = pytest.mark.usefixtures("fresh_nodes")

CONTAINER = "holder"

# Counts, with the file held open.
HOLD = """
import time
held = open("/data/file")
n = 0
while True:
    n += 1
    print(n, flush=True)
    time.sleep(0.05)
"""


def holder(*, code: str = HOLD, **asked: str) -> PodSpec:
    """A pod that runs *code* with /srv/files of its node at /data; *asked* are annotations."""
    container = ContainerSpec(
        name=CONTAINER,
        image=images.PYTHON,
        command=("/usr/bin/python3", "-c", code),
        mounts=(VolumeMount("data", "/data"),),
    )
    return PodSpec(
        name="holder",
        containers=(container,),
        volumes=(HostPath("data", "/srv/files"),),
        annotations=tuple((f"grit.dev/{key.replace('_', '-')}", asked[key]) for key in asked),
    )


def put(node: Node, content: str) -> None:
    node.run(["sh", "-ec", f'mkdir -p /srv/files; printf "%s" "{content}" >/srv/files/file'])


def grown(node: Node, name: str, size_bytes: int) -> int:
    """Make *name* of the python image *size_bytes* long on *node*; how long it was."""
    snapshots = node.path(Path("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs"))
    (path,) = snapshots.glob(f"snapshots/*/fs/{name}")
    was = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size_bytes or was + 1)
    return was


@pytest.mark.case("an open file of a volume, or a program, missing or another", cases.REFUSED)
def test_a_file_that_is_not_what_it_was_is_named(nodes: Nodes, run_pod: RunPod) -> None:
    put(nodes.a, "12345")
    source = run_pod(nodes.a, holder())
    source.wait_for_log(CONTAINER, "\n3\n")
    cases.move(nodes, source, "holder")
    restored = holder(restore_name="holder")

    nodes.b.run(["mkdir", "-p", "/srv/files"])
    missing = cases.refusal(nodes, restored)
    assert "file /data/file is missing, was 5 bytes long; the volume at /data is not" in missing
    for content in ("1234", "123456"):
        put(nodes.b, content)
        wrong = f"file /data/file is {len(content)} bytes long, was 5; the volume at /data is not"
        assert wrong in cases.refusal(nodes, restored)

    put(nodes.b, "abcde")
    program = f"usr/bin/python{nodes.b.edition.python}"
    size_bytes = grown(nodes.b, program, 0)
    try:
        wrong = f"file /{program} is {size_bytes + 1} bytes long, was {size_bytes}; "
        refused = cases.refusal(nodes, restored)
        assert wrong in refused
        assert f"expected the file of the checkpoint's image {images.PYTHON}" in refused
    finally:
        grown(nodes.b, program, size_bytes)
    run_pod(nodes.b, restored).wait_for_log(CONTAINER, "\n9\n")
