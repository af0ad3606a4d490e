from grit_runtime.manager import api, conditions
from grit_runtime.manager.api import Condition
from grit_runtime.manager.conditions import Moment

AT_NOON, LATER = Moment("2026-11-24T12:00:00Z", 1), Moment("2026-11-24T12:00:09Z", 1)


def shown(found: tuple[Condition, ...]) -> dict[str, str]:
    return {condition.type: condition.status for condition in found}


def test_a_phase_that_was_reached_stays_so() -> None:
    found = conditions.reached((), api.CREATED, "CheckpointIsCreated", "", AT_NOON)
    found = conditions.reached(found, api.PENDING, "InitializingCompleted", "", LATER)
    assert shown(found) == {"Created": "True", "Pending": "True", "Ready": "False"}
    assert found[0].last_transition_time == AT_NOON.time


def test_ready_turns_true_once_and_says_when() -> None:
    found = conditions.reached((), api.CHECKPOINTING, "GritAgentIsCreated", "", AT_NOON)
    found = conditions.reached(found, api.CHECKPOINTED, "GritAgentJobCompleted", "", LATER)
    found = conditions.reached(found, api.SUBMITTING, "CheckpointedCompleted", "", Moment("x", 1))
    (ready,) = (condition for condition in found if condition.type == "Ready")
    assert (ready.status, ready.last_transition_time) == ("True", LATER.time)
    assert ready.reason == "CheckpointedCompleted"


def test_a_failure_is_taken_back_when_it_goes_on_after_all() -> None:
    found = conditions.reached((), api.RESTORING, "GritAgentIsCreated", "", AT_NOON)
    found = conditions.reached(found, api.FAILED, "NoRoom", "disk full", AT_NOON)
    assert shown(found) == {"Restoring": "True", "Failed": "True", "Ready": "False"}
    found = conditions.reached(found, api.RESTORED, "RestorationPodRunning", "", LATER)
    assert shown(found)["Failed"] == "False"
    assert shown(found)["Ready"] == "True"
