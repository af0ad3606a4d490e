"""An object of the cluster is told by its conditions."""

from __future__ import annotations

from typing import Any

from grit_runtime.explain import conditions


def condition(kind: str, second: int, *, status: str = "True", **told: str) -> dict[str, Any]:
    stamp = f"2026-11-30T05:00:{second:02}Z"
    return {"type": kind, "status": status, "lastTransitionTime": stamp, **told}


def test_a_phase_lasts_until_the_next() -> None:
    told = conditions.story(
        {
            "kind": "Migration",
            "metadata": {"namespace": "default", "name": "web"},
            "status": {
                "phase": "Failed",
                "targetNode": "node-b",
                "conditions": [
                    condition("Restoring", 9),
                    condition("Pending", 1),
                    condition("Checkpointing", 3),
                    condition("Ready", 1, status="False"),
                    condition("Failed", 14, reason="MountDiffers", message="mount /a is gone"),
                ],
            },
        }
    )
    (act,) = told.acts
    assert [(p.name, p.begin_s, p.seconds) for p in act.phases] == [
        ("Pending", 0, 2),
        ("Checkpointing", 2, 6),
        ("Restoring", 8, 5),
    ]
    assert (act.error, act.reason, act.is_good) == ("MountDiffers", "mount /a is gone", False)
    assert ("targetNode", "node-b") in told.facts


def test_an_object_without_a_status_has_nothing_to_tell_yet() -> None:
    told = conditions.story({"kind": "Restore", "metadata": {"namespace": "a", "name": "b"}})
    assert told.title == "restore a/b"
    assert told.acts[0].phases == ()
