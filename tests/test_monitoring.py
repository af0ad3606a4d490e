"""What watches grit asks for metrics that there are, and shows all of them."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from grit_runtime.agent import metrics as agent
from grit_runtime.manager import metrics as manager
from integration.documents import REPO

MONITORING = REPO / "runtime-config/monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
FAMILIES = {
    family.name
    for made in (agent.Metrics(len, int, int), manager.Metrics())
    for family in made.registry.collect()
}
TARGETS = [
    pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
]


def asked_for(query: str) -> set[str]:
    """The metrics that a query names."""
    return {
        re.sub(r"_(?:bucket|sum|count|total)$", "", name)
        for name in re.findall(r"\bgrit_\w+", query)
    }


@pytest.mark.parametrize("query", TARGETS)
def test_each_panel_asks_for_what_there_is(query: str) -> None:
    assert asked_for(query) <= FAMILIES
    assert asked_for(query) or "up{" in query


def test_the_dashboard_shows_every_metric() -> None:
    assert {name for target in TARGETS for name in asked_for(str(target.values[0]))} == FAMILIES


def test_each_alert_asks_for_what_there_is() -> None:
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]:
        assert asked_for(rule["expr"]) <= FAMILIES
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["labels"]["severity"] in {"critical", "warning"}


def test_no_panel_lies_on_another() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
