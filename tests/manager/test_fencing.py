from __future__ import annotations

from typing import Any

import pytest

from grit_runtime.manager import fencing


def node(ready: str, taint: str = "", annotations: dict[str, str] | None = None) -> dict[str, Any]:
    return {
        "metadata": {"name": "node-a", "annotations": annotations or {}},
        "spec": {"taints": [{"key": taint}] if taint else []},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    }


@pytest.mark.parametrize(("ready", "lost"), [("True", False), ("False", True), ("Unknown", True)])
def test_a_node_is_lost_when_it_is_not_ready(ready: str, lost: bool) -> None:  # noqa: FBT001
    assert fencing.is_lost(node(ready)) == lost


def test_a_node_that_has_said_nothing_yet_is_not_lost() -> None:
    assert not fencing.is_lost({"metadata": {"name": "new"}, "spec": {}})


def test_only_whoever_knows_can_say_that_a_node_runs_nothing() -> None:
    assert not fencing.is_fenced(node("Unknown", "node.kubernetes.io/unreachable"))
    assert not fencing.is_fenced(node("Unknown", annotations={fencing.FENCED: "false"}))
    assert fencing.is_fenced(node("Unknown", "node.kubernetes.io/out-of-service"))
    assert fencing.is_fenced(node("Unknown", annotations={fencing.FENCED: "true"}))
