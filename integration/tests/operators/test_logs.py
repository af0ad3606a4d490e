"""Lines of the log on a node that is told to write JSON: all of them say whose they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from integration.node.cri import CriError
from integration.pods import checkpoints, workload
from integration.tests.operators.test_doctor import CONFIG, written

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.tests.conftest import Nodes, RunPod

pytestmark = pytest.mark.usefixtures("fresh_nodes")

CLONE = (("grit.dev/restore-name", "logged"), ("grit.dev/clone", "true"))
NOWHERE = (("grit.dev/restore-name", "nowhere"),)
LOGS = Path("/var/log/grit/default")


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def whose(log: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {(line["pod"], line["container"], line["attempt"]) for line in log}


def test_every_line_of_a_checkpoint_and_a_restore_says_whose_it_is(
    nodes: Nodes, run_pod: RunPod
) -> None:
    node = nodes.a
    source = run_pod(node, workload.counter_pod("logged"))
    workload.wait_for_count(source, 5)
    with written(node, CONFIG, "log_json = true\n"):
        taken = lines(checkpoints.take(source, "logged").stderr)
        target = run_pod(node, workload.counter_pod("logged-2", annotations=CLONE))
        with pytest.raises(CriError, match="nowhere"):
            run_pod(node, workload.counter_pod("logged-3", annotations=NOWHERE))
    assert {line["pod"] for line in taken} == {"default/logged"}
    assert len({line["attempt"] for line in taken}) == 1
    assert whose([line for line in taken if line["msg"] == "dump"]) == {
        ("default/logged", "counter", taken[0]["attempt"])
    }
    restored = lines(node.path(LOGS / "logged-2/counter/grit.log").read_text())
    assert {"verify", "restore", "read back", "all"} <= {line["msg"] for line in restored}
    assert whose(restored) == {("default/logged-2", "counter", target.container_ids["counter"])}
    (failed,) = lines(node.path(LOGS / "logged-3/counter/grit.log").read_text())
    assert (failed["level"], failed["pod"]) == ("error", "default/logged-3")
    assert "nowhere" in failed["reason"]
    assert failed["attempt"]
