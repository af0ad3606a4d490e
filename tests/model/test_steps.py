"""Steps of journals, as they are written and read back."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grit_runtime.errors import FailedPreconditionError
from grit_runtime.model import checkpoint_steps, restore_steps, steps, volume_steps
from grit_runtime.model.memory_range import MemoryFile, MemoryRange
from grit_runtime.model.outcomes import Outcome
from grit_runtime.pod import loopback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from grit_runtime.model.steps import Steps

TEXTS = st.text(max_size=8)
NUMBERS = st.integers()
OUTCOMES = st.builds(
    Outcome,
    *[TEXTS] * 10,
    binds=st.booleans(),
    timeline=st.tuples(st.dictionaries(TEXTS, NUMBERS)),
    warnings=st.tuples(TEXTS),
)
RANGES = st.lists(st.builds(MemoryRange, NUMBERS, NUMBERS)).map(tuple)
# By the type of a field.
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "str": TEXTS,
    "str | None": st.none() | TEXTS,
    "int": NUMBERS,
    "int | None": st.none() | NUMBERS,
    "bool": st.booleans(),
    "tuple[str, ...]": st.lists(TEXTS).map(tuple),
    "tuple[int, ...]": st.lists(NUMBERS).map(tuple),
    "tuple[int | None, ...]": st.lists(st.none() | NUMBERS).map(tuple),
    "tuple[MemoryFile, ...]": st.lists(st.builds(MemoryFile, NUMBERS, TEXTS, RANGES, TEXTS)).map(
        tuple
    ),
    "Outcome": OUTCOMES,
    "Outcome | None": st.none() | OUTCOMES,
}
KINDS = [
    *((checkpoint_steps.STEPS, kind) for kind in get_args(checkpoint_steps.Step)),
    *((restore_steps.STEPS, kind) for kind in get_args(restore_steps.Step)),
    *((volume_steps.STEPS, kind) for kind in get_args(volume_steps.Step)),
    (loopback.STEPS, loopback.Hold),
]


@pytest.mark.parametrize(("union", "kind"), KINDS, ids=lambda value: getattr(value, "__name__", ""))
@settings(max_examples=20)
@given(data=st.data())
def test_a_step_is_read_back_as_it_was_written(
    union: Steps[Any], kind: type[tuple[Any, ...]], data: st.DataObject
) -> None:
    types = getattr(kind, "__annotations__", {})
    step = kind(**{field: data.draw(VALUES[text]) for field, text in types.items()})
    read = union.read(json.loads(json.dumps(steps.written(step))))
    assert (type(read), read) == (kind, step)


def test_a_step_is_called_as_its_class_in_words() -> None:
    assert steps.written(restore_steps.RwLayer()) == {"step": "rw layer"}
    assert steps.written(checkpoint_steps.MemoryBack()) == {"step": "memory back"}
    assert steps.written(checkpoint_steps.Gpu((1,)))["step"] == "gpu"
    assert steps.written(volume_steps.LetGo("c1")) == {"step": "let go", "container_id": "c1"}


@pytest.mark.parametrize(
    ("line", "unknown"),
    [
        ({"step": "melt", "container": "c1"}, "step 'melt' is of a newer grit"),
        ({"step": "restored"}, "step 'restored' is of a newer grit"),  # not of a checkpoint
        ({"step": "freeze", "container": "c1", "how": "v3"}, "'freeze' has the field 'how'"),
        (
            {"step": "begin", "token": "", "runc_root": "", "outcome": {"mood": ""}},
            "a record has the field 'mood'",
        ),
    ],
)
def test_what_a_newer_version_has_done_is_refused(line: dict[str, object], unknown: str) -> None:
    with pytest.raises(FailedPreconditionError, match=f"{unknown}.*upgrade grit on this node"):
        checkpoint_steps.STEPS.read(line)


def test_a_step_without_fields_is_found_among_others_that_are_equal_to_it() -> None:
    taken = [checkpoint_steps.MemoryBack(), checkpoint_steps.Freeze("a")]
    assert checkpoint_steps.Frozen() in taken
    assert not steps.has(taken, checkpoint_steps.Frozen)
    assert steps.has(taken, checkpoint_steps.MemoryBack)
    assert steps.last(taken, checkpoint_steps.Stop) is None
    taken += [checkpoint_steps.Freeze("b")]
    assert steps.last(taken, checkpoint_steps.Freeze) == checkpoint_steps.Freeze("b")
