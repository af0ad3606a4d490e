from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integration.fleet.kernel import Kernel, Slots
from integration.fleet.links import Links, Way

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.fleet.kernel import Process

ENDS = 2.0
STORES = {"store": 3.0, "other": 50.0}


class Transfer(NamedTuple):
    begin_s: float
    gib: float
    way: Way


class Running(NamedTuple):
    kernel: Kernel
    links: Links
    ended_s: dict[int, float]


def running(transfers: list[Transfer]) -> Running:
    kernel = Kernel()
    links = Links(kernel, ENDS, STORES)
    ended_s: dict[int, float] = {}

    def moving(number: int, transfer: Transfer) -> Process:
        yield kernel.sleep(transfer.begin_s)
        yield links.moved(transfer.gib, transfer.way)
        ended_s[number] = kernel.now_s

    for number, transfer in enumerate(transfers):
        kernel.start(moving(number, transfer))
    return Running(kernel, links, ended_s)


def ended(*transfers: Transfer) -> list[float]:
    """When each has ended."""
    now = running(list(transfers))
    now.kernel.run(1000)
    return [now.ended_s[number] for number in range(len(transfers))]


def test_a_transfer_alone_is_as_fast_as_its_links() -> None:
    assert ended(Transfer(1, 10, Way(("a", "b")))) == [6]
    assert ended(Transfer(1, 9, Way((), "store"))) == [4]


def test_those_that_share_a_link_have_the_same_of_it() -> None:
    both = ended(Transfer(0, 10, Way(("a", "b"))), Transfer(0, 10, Way(("a", "c"))))
    assert both == pytest.approx([10, 10])


def test_who_ends_leaves_its_share_to_the_others() -> None:
    found = ended(Transfer(0, 2, Way(("a", "b"))), Transfer(0, 10, Way(("a", "c"))))
    assert found == pytest.approx([2, 6])


def test_a_store_is_shared_by_all_nodes() -> None:
    found = ended(*(Transfer(0, 3, Way((f"node-{number}",), "store")) for number in range(6)))
    assert found == pytest.approx([6] * 6)


NODES = st.sampled_from("abcd")
WAYS = st.builds(
    Way, st.lists(NODES, max_size=2, unique=True).map(tuple), st.sampled_from(list(STORES))
)
TRANSFERS = st.lists(
    st.builds(
        Transfer,
        st.floats(0, 20, allow_nan=False),
        st.floats(0.01, 40, allow_nan=False),
        WAYS,
    ),
    min_size=1,
    max_size=12,
)


@given(TRANSFERS)
def test_no_link_has_more_than_it_has_and_every_byte_arrives_once(
    transfers: list[Transfer],
) -> None:
    first = running(transfers)
    first.kernel.run(10_000)
    assert len(first.ended_s) == len(transfers)
    again = running(transfers)
    moved: Counter[Way] = Counter()
    changes = sorted({*first.ended_s.values(), *(one.begin_s for one in transfers)})
    for moment_s, next_s in zip(changes, [*changes[1:], changes[-1]], strict=True):
        again.kernel.run(moment_s)
        used: Counter[str] = Counter()
        for way, rate in again.links.rates():
            used.update(dict.fromkeys((*way.ends, way.store), rate))
            moved[way] += rate * (next_s - moment_s)  # type: ignore[assignment]
        for link, rate in used.items():
            assert rate <= STORES.get(link, ENDS) * (1 + 1e-9)
    for way in {one.way for one in transfers}:
        wanted = sum(one.gib for one in transfers if one.way == way)
        assert moved[way] == pytest.approx(wanted, abs=1e-6)


def test_slots_are_given_to_those_that_came_first() -> None:
    kernel = Kernel()
    slots = Slots(kernel, 2)
    begun: list[tuple[str, float]] = []

    def working(name: str) -> Process:
        yield slots.taken
        begun.append((name, kernel.now_s))
        yield kernel.sleep(5)
        slots.give_back()

    for name in "abcde":
        kernel.start(working(name))
    kernel.run(60)
    assert begun == [("a", 0), ("b", 0), ("c", 5), ("d", 5), ("e", 10)]


def test_what_is_due_after_the_end_does_not_happen() -> None:
    kernel = Kernel()
    happened: list[int] = []
    for moment_s in (3, 1, 2):
        kernel.at(moment_s, lambda moment_s=moment_s: happened.append(moment_s))  # type: ignore[misc]
    kernel.run(2)
    assert (happened, kernel.now_s) == ([1, 2], 2)
