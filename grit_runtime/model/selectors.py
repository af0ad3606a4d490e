"""Label selectors, as Kubernetes has them. Pure. Source: apimachinery pkg/apis/meta/v1/types.go."""

from __future__ import annotations

from typing import Annotated, Literal

from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


Value = Annotated[str, {"maxLength": 63}]


class LabelRequirement(NamedTuple):
    key: Annotated[str, {"maxLength": 317}]
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: Annotated[tuple[Value, ...], {"maxItems": 100}] = ()


class LabelSelector(NamedTuple):
    match_labels: Annotated[dict[str, Value], {"maxProperties": 100}] = {}  # noqa: RUF012  never changed
    match_expressions: Annotated[tuple[LabelRequirement, ...], {"maxItems": 100}] = ()


def selects(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Whether an object with *labels* is meant. An empty selector means all, as in Kubernetes."""
    wanted = selector.match_labels.items()
    return wanted <= labels.items() and all(
        meets(labels, term.key, term.operator, term.values) for term in selector.match_expressions
    )


def meets(labels: Mapping[str, str], key: str, operator: str, values: tuple[str, ...]) -> bool:
    """Whether *labels* meet one requirement; nodes' have Gt and Lt too, of whole numbers."""
    value = labels.get(key)
    if operator in {"Exists", "DoesNotExist"}:
        return (value is not None) == (operator == "Exists")
    if operator in {"In", "NotIn"}:
        return (value in values) == (operator == "In")
    try:
        here, bound = int(value or ""), int(values[0])
    except (ValueError, IndexError):
        return False  # as the scheduler: what is no number is neither greater nor less
    return here > bound if operator == "Gt" else here < bound
