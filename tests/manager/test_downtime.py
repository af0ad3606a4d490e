from __future__ import annotations

from typing import Any

import pytest

from grit_runtime.manager import downtime

SHA256 = "7" * 64


def phase(name: str, epoch_s: float, seconds: float) -> dict[str, Any]:
    return {"phase": name, "epoch_s": epoch_s, "seconds": seconds}


def sealed(*phases: dict[str, Any]) -> dict[str, Any]:
    return {"outcome": "sealed", "timeline": list(phases)}


def restored(*phases: dict[str, Any]) -> dict[str, Any]:
    return {"outcome": "restored", "manifest_sha256": SHA256, "timeline": list(phases)}


SEALED = sealed(phase("freeze", 100.25, 0.05), phase("dump", 100.3, 0.5))
RESTORED = restored(phase("verify", 103.1, 0.2), phase("all", 103.0, 0.5))


def test_a_pod_stands_from_the_freeze_until_its_last_container_runs() -> None:
    later = restored(phase("all", 104.0, 1.0))
    assert downtime.seconds([SEALED], [RESTORED], SHA256) == 3.25
    assert downtime.seconds([SEALED], [RESTORED, later], SHA256) == 4.75


def test_a_pod_with_gpus_stands_before_it_is_frozen() -> None:
    one = sealed(phase("gpu lock", 100.1, 0.1), phase("freeze", 100.25, 0.05))
    assert downtime.seconds([one], [RESTORED], SHA256) == 3.4


def test_a_pod_that_was_frozen_anew_stands_from_the_last_time() -> None:
    one = sealed(
        phase("freeze", 100.1, 0.1), phase("thaw", 100.3, 0.1), phase("freeze", 100.5, 0.1)
    )
    assert downtime.seconds([one], [RESTORED], SHA256) == 3.0


def test_clocks_that_differ_make_no_pod_run_before_it_stood() -> None:
    one = restored(phase("all", 90.0, 0.5))
    assert downtime.seconds([SEALED], [one], SHA256) == 0.0


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ([], [RESTORED]),
        ([SEALED], []),
        ([SEALED], [{**RESTORED, "manifest_sha256": "8" * 64}]),
        ([sealed({"phase": "freeze", "begin_s": 0.1, "seconds": 0.1})], [RESTORED]),
        ([SEALED], [{**RESTORED, "outcome": "cold"}]),
    ],
)
def test_what_no_record_says_is_not_known(source: list[Any], target: list[Any]) -> None:
    assert downtime.seconds(source, target, SHA256) is None
