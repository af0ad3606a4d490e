"""The fleet that is simulated, drawn from distributions. The same number draws the same fleet."""

from __future__ import annotations

import random
from typing import NamedTuple

from integration.fleet import inputs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any


class Pod(NamedTuple):
    name: str
    node: str
    cards: int
    gib: float  # of all its cards together
    changed: float  # of its chunks, since a schedule pushed them last
    body: dict[str, Any]  # as the API server has it, for what the manager decides by


class Fleet(NamedTuple):
    told: dict[str, list[Pod]]  # the pods of each node that has a notice
    free: dict[str, int]  # the cards of each other node that no pod has


def drawn(nodes: int, told: int, empty: int = 0, seed: int = 1) -> Fleet:
    """*nodes*, the first *told* of which get a notice, and *empty* ones besides.

    Which those are means nothing: names are dealt out at random.
    """
    chance = random.Random(seed)  # noqa: S311  it is no secret
    names = [f"node-{number:04}" for number in range(nodes + empty)]
    chance.shuffle(names)
    pods = {name: _pods(chance, name) for name in names[:nodes]}
    leaving = names[:told]
    free = {
        name: inputs.CARDS - sum(pod.cards for pod in pods.get(name, ()))
        for name in names
        if name not in set(leaving)
    }
    return Fleet({name: pods[name] for name in leaving}, free)


def _pods(chance: random.Random, node: str) -> list[Pod]:
    """The node is filled with pods, and each of them is there with the chance of the load."""
    pods: list[Pod] = []
    left = inputs.CARDS
    while left > 0:
        sizes = [(cards, share) for cards, share in inputs.CARDS_A_POD if cards <= left]
        cards = _one_of(chance, sizes)
        pods.append(_pod(chance, f"{node}-pod-{len(pods)}", node, cards))
        left -= cards
    return [pod for pod in pods if chance.random() < inputs.LOAD]


def _pod(chance: random.Random, name: str, node: str, cards: int) -> Pod:
    gib = cards * _one_of(chance, inputs.GIB_A_CARD)
    is_serving = chance.random() < inputs.SERVING
    requests = {"nvidia.com/gpu": str(cards), "memory": f"{gib}Gi"}
    body = {
        "metadata": {
            "name": name,
            "uid": f"{chance.getrandbits(128):032x}",
            "creationTimestamp": f"2026-01-{chance.randrange(1, 31):02}T00:00:00Z",
        },
        "spec": {
            "priority": 1000 if chance.random() < inputs.URGENT else 0,
            "containers": [{"resources": {"requests": requests}}],
        },
    }
    changed = inputs.CHANGED_SERVING if is_serving else inputs.CHANGED_TRAINING
    return Pod(name, node, cards, gib, changed, body)


def _one_of(chance: random.Random, choices: Sequence[tuple[int, float]]) -> int:
    values, shares = zip(*choices, strict=True)
    return int(chance.choices(values, shares)[0])
