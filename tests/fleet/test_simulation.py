from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grit_runtime.manager import notices
from integration.fleet import drawing, inputs, simulation
from integration.fleet.drawing import Fleet, Pod
from integration.fleet.simulation import (
    DUMP,
    PULL,
    RESTORE,
    ROOM,
    TURN,
    VERIFIED,
    Outcome,
    Setting,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.fleet.inputs import Measured

MEASURED = inputs.measured()
SETTINGS = st.builds(
    Setting,
    store_gib_per_s=st.none() | st.sampled_from([1.0, 12.0, 1000.0]),
    has_deltas=st.booleans(),
    at_once=st.sampled_from([1, 2, 4, math.inf]),
    objects=st.sampled_from([1, 10, 500]),
    jobs=st.sampled_from([1, 2]),
)


def pod(name: str, gib: float, *, cards: int = 1, priority: int = 0) -> Pod:
    requests = {"nvidia.com/gpu": str(cards), "memory": f"{gib}Gi"}
    body = {
        "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"priority": priority, "containers": [{"resources": {"requests": requests}}]},
    }
    return Pod(name, "source", cards, gib, 1.0, body)


def outcome(
    *pods: Pod, free: int = 8, setting: Setting | None = None, measured: Measured = MEASURED
) -> dict[str, Outcome]:
    fleet = Fleet({"source": list(pods)}, {"target": free})
    found = simulation.run(fleet, measured, setting or Setting())
    return {one.pod.name: one for one in found}


def alone_s(pod: Pod, measured: Measured) -> float:
    """How long a pod takes from node to node that shares nothing with others."""
    doublings = math.log2(pod.cards)
    gib_a_card = pod.gib / pod.cards
    seal_s = measured.seal.seconds(gib_a_card) * math.pow(measured.seal_a_doubling, doublings)
    restore_s = measured.restore.seconds(gib_a_card)
    restore_s *= math.pow(measured.restore_a_doubling, doublings)
    return measured.control_s + seal_s + pod.gib / measured.link_gib_per_s + restore_s


def test_a_pod_alone_takes_as_long_as_its_parts() -> None:
    one = pod("one", 32)
    assert outcome(one)["one"].verified_s == pytest.approx(alone_s(one, MEASURED))


def test_what_was_measured_is_what_a_move_took() -> None:
    """32 GiB to another node: until it was sealed, and from its start to its end."""
    taken_s = alone_s(pod("one", 32), MEASURED._replace(control_s=0.0))
    assert taken_s == pytest.approx(14.981 + 16.658, abs=0.1)


def test_a_store_is_a_longer_way_and_keeps_what_does_not_arrive() -> None:
    found = outcome(pod("small", 8), pod("large", 64), setting=Setting(store_gib_per_s=1.5))
    assert found["small"].stage == VERIFIED
    assert found["small"].verified_s > alone_s(pod("small", 8), MEASURED)
    assert found["large"].stage == PULL
    assert found["large"].is_kept


def test_the_pod_of_most_value_goes_first_and_the_last_has_no_turn() -> None:
    pods = [pod("least", 8), pod("first", 128, priority=1000), pod("second", 128, cards=2)]
    found = outcome(*pods, setting=Setting(at_once=1))
    assert list(found) == ["first", "second", "least"]
    assert found["first"].stage == VERIFIED
    assert found["least"].stage == TURN


def test_a_pod_that_fits_nowhere_keeps_its_turn() -> None:
    pods = [pod("wide", 8, cards=8), pod("narrow", 8)]
    found = outcome(*pods, free=4, setting=Setting(at_once=1))
    assert [one.stage for one in found.values()] == [ROOM, TURN]


def test_what_is_sealed_before_costs_a_store_no_bytes_again() -> None:
    serving = pod("serving", 32)._replace(changed=0.1)
    way = Setting(store_gib_per_s=100.0)
    whole, part = (
        outcome(serving, setting=way._replace(has_deltas=deltas))["serving"].verified_s
        for deltas in (False, True)
    )
    sent_s = 32 / MEASURED.store_gib_per_s
    assert whole - part == pytest.approx(sent_s - max(sent_s / 10, 32 / MEASURED.hash_gib_per_s))


def test_the_end_of_the_notice_finds_a_pod_where_it_is() -> None:
    assert outcome(pod("one", 300))["one"].stage == DUMP
    slow = MEASURED._replace(restore=inputs.Line(100.0, 0.0))
    assert outcome(pod("one", 32), measured=slow)["one"].stage == RESTORE


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 12), st.integers(0, 12), SETTINGS)
def test_every_pod_ends_once_and_none_later_or_sooner_than_it_can(
    seed: int, told: int, empty: int, setting: Setting
) -> None:
    fleet = drawing.drawn(12, told, empty, seed)
    outcomes = simulation.run(fleet, MEASURED, setting)
    here = [pod for pods in fleet.told.values() for pod in pods]
    assert sorted(one.pod.name for one in outcomes) == sorted(pod.name for pod in here)
    verified = [one for one in outcomes if one.stage == VERIFIED]
    for one in verified:
        assert one.verified_s <= inputs.NOTICE_S
        fastest = MEASURED._replace(link_gib_per_s=1000.0) if setting.store_gib_per_s else MEASURED
        assert one.verified_s >= alone_s(one.pod, fastest) - 1e-6
    if setting.store_gib_per_s:
        assert all(one.is_kept for one in verified)
    else:
        assert not any(one.is_kept for one in outcomes)
    assert sum(one.pod.cards for one in verified) <= sum(fleet.free.values())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), SETTINGS)
def test_pods_of_a_node_have_their_turns_in_the_manager_s_order(
    seed: int, setting: Setting
) -> None:
    fleet = drawing.drawn(12, 6, 6, seed)
    outcomes = simulation.run(fleet, MEASURED, setting)
    for name in fleet.told:
        own = [one for one in outcomes if one.pod.node == name]
        assert own == sorted(own, key=lambda one: notices.rank(one.pod.body))
        waiting = [one.stage == TURN for one in own]
        assert waiting == sorted(waiting)
        under_way = [one for one in own if one.stage not in {TURN, VERIFIED}]
        assert len(under_way) <= setting.at_once


def test_the_same_number_draws_the_same_fleet() -> None:
    assert drawing.drawn(20, 5, 2, 7) == drawing.drawn(20, 5, 2, 7)
    assert drawing.drawn(20, 5, 2, 7) != drawing.drawn(20, 5, 2, 8)


@given(st.integers(0, 1000))
def test_no_node_has_more_pods_than_cards(seed: int) -> None:
    fleet = drawing.drawn(10, 10, 0, seed)
    for pods in fleet.told.values():
        assert sum(pod.cards for pod in pods) <= inputs.CARDS
