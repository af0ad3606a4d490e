"""A checkpoint that reaches another node by way of a store on a volume that both have mounted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from integration.node import volume
from integration.pods import checkpoints, workload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from integration.tests.conftest import Nodes, RunPod

STORE = "/mnt/checkpoints"

pytestmark = pytest.mark.usefixtures("fresh_nodes")


@pytest.fixture(scope="module")
def store(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The volume, as this machine finds it; a store in it once the first push has made it one."""
    directory = tmp_path_factory.mktemp("volume")
    for node in nodes:
        volume.mount(directory, node, Path(STORE))
    yield directory
    for node in nodes:
        node.run(["umount", STORE])


def test_the_second_node_restores_from_the_store(
    nodes: Nodes, run_pod: RunPod, store: Path
) -> None:
    source = run_pod(nodes.a, workload.counter_pod("by-store", ballast_mib=64))
    workload.wait_for_count(source, 10)
    checkpoints.take(source, "stored")
    carried = len(
        (checkpoints.directory(nodes.a, "stored") / "counter/container.log").read_text().split()
    )
    planned = nodes.a.run(["grit", "push", "default/stored", STORE, "--dry-run"]).stdout
    assert "would be put into" in planned
    assert not list(store.iterdir())
    pushed = nodes.a.run(["grit", "push", "default/stored", STORE]).stdout
    assert f"in {STORE}, manifest sha256:" in pushed
    listed = json.loads(nodes.b.run(["grit", "ls", STORE, "--json"]).stdout)
    assert [(row["checkpoint"], row["state"], row["pod"]) for row in listed] == [
        ("default/stored", "sealed", "by-store")
    ]
    nodes.b.run(["grit", "pull", "default/stored", STORE])
    nodes.b.run(["grit", "verify", "/mnt/grit-agent/default/stored"])
    here = json.loads(nodes.b.run(["grit", "ls", "--json"]).stdout)
    assert [row["sha256"] for row in here] == [row["sha256"] for row in listed]

    annotations = (("grit.dev/restore-name", "stored"),)
    target = run_pod(nodes.b, workload.counter_pod("from-store", annotations=annotations))
    workload.assert_goes_on_from(target, carried, node=nodes.b)


def test_a_second_push_of_the_pod_sends_little(nodes: Nodes, run_pod: RunPod, store: Path) -> None:
    pod = run_pod(nodes.a, workload.counter_pod("again", ballast_mib=64))
    workload.wait_for_count(pod, 5)
    sent = []
    for name in ("again-1", "again-2"):
        checkpoints.take(pod, name)
        printed = nodes.a.run(["grit", "push", f"default/{name}", STORE, "--json"]).stdout
        sent.append(json.loads(printed)["sent_bytes"])
    assert sent[1] < 0.5 * sent[0]
    kept = nodes.a.run(["grit", "gc", STORE, "--keep", "1"]).stdout
    assert "default/again-1@" in kept
    nodes.b.run(["grit", "pull", "default/again-2", STORE])
    nodes.b.run(["grit", "verify", "/mnt/grit-agent/default/again-2"])
    assert os.listdir(store / "locks") == []


def test_what_this_node_cannot_restore_is_said_without_a_pod(nodes: Nodes, run_pod: RunPod) -> None:
    pod = run_pod(nodes.a, workload.counter_pod("compat"))
    workload.wait_for_count(pod, 3)
    checkpoints.take(pod, "compat")
    fits = nodes.a.run(["grit", "compat", "default/compat"]).stdout
    assert fits == "/mnt/grit-agent/default/compat can be restored there\n"
    facts = json.loads(nodes.a.run(["grit", "compat", "--facts"]).stdout)
    facts["node"]["criu"] = "3.19"
    nodes.a.path(Path("/run/other-node.json")).write_text(json.dumps(facts))
    refused = nodes.a.run(
        ["grit", "compat", "default/compat", "--node", "/run/other-node.json"], check=False
    )
    assert refused.returncode == 1
    assert "this node has 3.19; install CRIU" in refused.stdout


def test_names_that_lead_elsewhere_are_refused(nodes: Nodes, store: Path) -> None:
    assert store.exists()
    for name in ("../x", "default/..", "default", "default/" + "n" * 300, "a/b/c"):
        for command in ("push", "pull", "rm"):
            refused = nodes.a.run(["grit", command, name, STORE], check=False)
            assert refused.returncode == 1, refused.stdout
            (line,) = refused.stderr.splitlines()
            assert line.startswith("grit: checkpoint"), line
