"""What is kept, by the API server and in stores: across an upgrade, and after a deletion."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from grit_runtime.manager.api import CHECKPOINTED, RESTORED, SUCCEEDED
from integration.kubernetes import grit, pods
from integration.kubernetes.objects import assert_goes_on, made, reached, started
from integration.node import volume

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.kubernetes.cluster import Cluster

POINT = Path("/srv/kept")
SCHEMA = "/spec/versions/0/schema/openAPIV3Schema/properties"
# Fields that older definitions did not have.
NEWER = {
    "checkpoints": f"{SCHEMA}/spec/properties/retention",
    "migrations": f"{SCHEMA}/status/properties/downtimeSeconds",
}


def change(kubernetes: Cluster, plural: str, **operation: object) -> None:
    """Change the definition of a kind by an operation of JSON patch."""
    patch = json.dumps([{"path": NEWER[plural], **operation}])
    kubernetes.kubectl("patch", "crd", f"{plural}.kaito.sh", "--type=json", "-p", patch)


@pytest.fixture
def todays(kubernetes: Cluster, name: str) -> Iterator[dict[str, object]]:  # noqa: ARG001
    """The cluster has older definitions; what today's have besides, by plurals."""
    fields = {}
    for plural, path in NEWER.items():
        found = kubernetes.get("crd", f"{plural}.kaito.sh")
        for step in path.split("/")[1:]:
            found = found[int(step) if step.isdecimal() else step]
        fields[plural] = found
        change(kubernetes, plural, op="remove")
    yield fields
    for plural, field in fields.items():
        change(kubernetes, plural, op="add", value=field)


def test_objects_of_older_definitions_are_valid_and_go_on_after_an_upgrade(
    kubernetes: Cluster, name: str, todays: dict[str, object]
) -> None:
    older = f"{name}-older"
    pod = started(kubernetes, pods.counter(name))
    kubernetes.apply(made("Checkpoint", older, podName=pod))
    assert grit.ended(kubernetes, "checkpoint", older, CHECKPOINTED)["phase"] == CHECKPOINTED
    kubernetes.apply(made("Migration", name, podName=pod))
    reached(kubernetes, "migration", name, "Checkpointing")
    for plural, field in todays.items():
        change(kubernetes, plural, op="add", value=field)
    status = grit.ended(kubernetes, "migration", name, SUCCEEDED)
    assert status["phase"] == SUCCEEDED, status
    assert_goes_on(kubernetes, status["targetPod"])
    # The older one can be changed, restored from, and deleted.
    kubernetes.kubectl("annotate", "checkpoint", older, "still=valid")
    again = pods.counter(f"{name}-again")
    selector = {"matchLabels": again["metadata"]["labels"]}
    kubernetes.apply(made("Restore", older, checkpointName=older, selector=selector))
    kubernetes.apply(again)
    assert grit.ended(kubernetes, "restore", older, RESTORED)["phase"] == RESTORED
    kubernetes.kubectl("delete", "restore", older)
    kubernetes.kubectl("delete", "checkpoint", older)
    newer = f"{name}-newer"
    kept = {"keep": 2}
    kubernetes.apply(made("Checkpoint", newer, podName=status["targetPod"], retention=kept))
    assert kubernetes.get("checkpoint", newer)["spec"]["retention"] == kept
    assert grit.ended(kubernetes, "checkpoint", newer, CHECKPOINTED)["phase"] == CHECKPOINTED


@pytest.fixture
def store(kubernetes: Cluster, tmp_path: Path) -> Iterator[str]:
    """A store that all nodes have."""
    for node in kubernetes.nodes:
        volume.mount(tmp_path, node, POINT)
    yield f"file://{POINT}"
    for node in kubernetes.nodes:
        node.run(["umount", "--lazy", str(POINT)])


def test_a_deleted_checkpoint_is_in_its_store_no_more_and_others_are(
    kubernetes: Cluster, name: str, store: str, tmp_path: Path
) -> None:
    pod = started(kubernetes, pods.counter(name))
    both = [f"{name}-{number}" for number in range(2)]
    node = kubernetes.node(kubernetes.get("pod", pod)["spec"]["nodeName"])
    for one in both:
        kubernetes.apply(made("Checkpoint", one, podName=pod, storage={"url": store}))
        status = grit.ended(kubernetes, "checkpoint", one, CHECKPOINTED)
        assert status["phase"] == CHECKPOINTED, status

    def stored() -> list[str]:
        found = (tmp_path / "checkpoints/default").glob("*/*")
        return sorted(path.parent.name for path in found)

    assert stored() == both
    kubernetes.kubectl("delete", "checkpoint", both[0])
    assert stored() == both[1:]
    here = node.run(["ls", "/mnt/grit-agent/default"]).stdout.split()
    assert both[0] not in here
    assert both[1] in here
    # The next collection takes what only it had.
    node.run(["grit", "gc", str(POINT)])
    node.run(["rm", "-r", f"/mnt/grit-agent/default/{both[1]}"])
    node.run(["grit", "pull", f"default/{both[1]}", str(POINT)])
    kubernetes.kubectl("delete", "checkpoint", both[1])
    node.run(["grit", "gc", str(POINT)])
    assert not [path for path in (tmp_path / "packs").rglob("*") if path.is_file()]
