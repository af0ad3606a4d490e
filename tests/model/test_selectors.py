import pytest

from grit_runtime.model import selectors
from grit_runtime.model.selectors import LabelRequirement, LabelSelector

LABELS = {"app": "web", "generation": "7", "empty": ""}


@pytest.mark.parametrize(
    ("key", "operator", "values", "is_met"),
    [
        ("app", "In", ("web", "api"), True),
        ("app", "In", ("api",), False),
        ("none", "In", ("web",), False),
        ("app", "NotIn", ("web",), False),
        ("none", "NotIn", ("web",), True),
        ("empty", "Exists", (), True),
        ("none", "Exists", (), False),
        ("none", "DoesNotExist", (), True),
        ("empty", "DoesNotExist", (), False),
        ("generation", "Gt", ("6",), True),
        ("generation", "Gt", ("7",), False),
        ("generation", "Lt", ("8",), True),
        ("app", "Gt", ("6",), False),
        ("none", "Lt", ("6",), False),
        ("generation", "Gt", (), False),
    ],
)
def test_a_requirement_is_met_as_in_kubernetes(
    key: str,
    operator: str,
    values: tuple[str, ...],
    is_met: bool,  # noqa: FBT001
) -> None:
    assert selectors.meets(LABELS, key, operator, values) == is_met


def test_all_of_a_selector_has_to_be_met() -> None:
    newer = LabelRequirement("generation", "NotIn", ("1",))
    assert selectors.selects(LabelSelector({"app": "web"}, (newer,)), LABELS)
    assert not selectors.selects(LabelSelector({"app": "api"}, (newer,)), LABELS)
    assert not selectors.selects(
        LabelSelector({"app": "web"}, (newer,)), {**LABELS, "generation": "1"}
    )
    assert selectors.selects(LabelSelector(), {})
