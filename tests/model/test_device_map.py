import pytest

from grit_runtime.errors import FailedPreconditionError, GritError, InvalidArgumentError
from grit_runtime.model.device_map import plan
from grit_runtime.model.manifest import Gpu

H100 = "NVIDIA H100 80GB HBM3"
A, B, C = (Gpu(f"GPU-{letter}", H100, 80 << 30) for letter in "abc")
SMALL = Gpu("GPU-small", H100, 40 << 30)
OTHER = Gpu("GPU-other", "NVIDIA A10", 80 << 30)


def test_the_same_cards_keep_their_places() -> None:
    assert plan([A, B], [B, A]) == (("GPU-a", "GPU-a"), ("GPU-b", "GPU-b"))


def test_a_card_that_is_not_here_gets_another_of_its_model() -> None:
    assert plan([A, B], [C, B]) == (("GPU-a", "GPU-c"), ("GPU-b", "GPU-b"))


def test_a_wanted_map_is_followed() -> None:
    assert plan([A, B], [A, B], "GPU-a=GPU-b, GPU-b=GPU-a") == (
        ("GPU-a", "GPU-b"),
        ("GPU-b", "GPU-a"),
    )


@pytest.mark.parametrize(
    ("given", "wanted", "error", "reason"),
    [
        ([A], "auto", FailedPreconditionError, "GPU GPU-b .* has no place .* give it 2 of NVIDIA"),
        ([A, SMALL], "auto", FailedPreconditionError, "GPU GPU-b"),
        ([A, OTHER], "auto", FailedPreconditionError, "GPU GPU-b"),
        ([], "auto", FailedPreconditionError, "given no GPU"),
        ([A, B], "GPU-a=GPU-b", InvalidArgumentError, "GPU-b is not mapped; list all"),
        ([A, B], "GPU-a=GPU-a,GPU-b=GPU-a", InvalidArgumentError, "two GPUs are mapped to one"),
        ([A, B], "GPU-a=GPU-a,GPU-a=GPU-b", InvalidArgumentError, "is not mapped"),
        ([A, B], "GPU-a=GPU-a,GPU-b=GPU-c", InvalidArgumentError, "not among the GPUs this pod"),
        ([A, B], "GPU-x=GPU-a,GPU-b=GPU-b", InvalidArgumentError, "GPU-x is not a GPU of the"),
        ([A, SMALL], "GPU-a=GPU-a,GPU-b=GPU-small", FailedPreconditionError, "cannot take the"),
        ([A, B], "GPU-a", InvalidArgumentError, "expected OLD=NEW"),
    ],
)
def test_what_does_not_fit_is_named(
    given: list[Gpu], wanted: str, error: type[GritError], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        plan([A, B], given, wanted)
