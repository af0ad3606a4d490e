from __future__ import annotations

from typing import Any

import pytest

from grit_runtime.manager import probes

HTTP = {"httpGet": {"port": 80}}
ONCE = {"periodSeconds": 1, "failureThreshold": 1}


def spec(**given: dict[str, Any]) -> dict[str, Any]:
    return {"containers": [{"name": "main", **given}]}


@pytest.mark.parametrize(
    ("found", "limit_s"),
    [
        (spec(livenessProbe={**HTTP, **ONCE}), 1),
        (spec(livenessProbe={**HTTP, **ONCE, "timeoutSeconds": 4}), 4),
        (spec(startupProbe={**HTTP, "periodSeconds": 2}), 5),
        (spec(livenessProbe=HTTP), 21),
        (spec(livenessProbe={"grpc": {"port": 80}, **ONCE}), 1),
    ],
)
def test_a_probe_that_gives_up_sooner_than_the_pod_goes_on_is_named(
    found: dict[str, Any], limit_s: float
) -> None:
    assert probes.impatient(found, limit_s) == []
    (said,) = probes.impatient(found, limit_s + 0.1)
    assert said.startswith(
        f"container main: its {next(iter(found['containers'][0].keys() - {'name'}))}"
    )
    assert f"gives up after {limit_s} s, and the pod stood still for {limit_s + 0.1} s" in said


@pytest.mark.parametrize(
    "found",
    [
        spec(),
        spec(readinessProbe={**HTTP, **ONCE}),
        spec(livenessProbe={"exec": {"command": ["true"]}, **ONCE}),
        spec(livenessProbe={"tcpSocket": {"port": 80}, **ONCE}),
    ],
)
def test_what_kills_nothing_is_not(found: dict[str, Any]) -> None:
    assert probes.impatient(found, 1000.0) == []
