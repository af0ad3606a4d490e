"""Bytes over links that are shared. Pure.

A link gives all that go over it the same. What one of them leaves of its share, since another link
of its way gives less, nobody gets: so there is never more than the links have, and at times less.
"""

from __future__ import annotations

import heapq
import itertools
import math
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from integration.fleet.kernel import Kernel, Resume, Wait

_ROUNDING_GIB = 1e-9


class Way(NamedTuple):
    """The links of a transfer, by name: of nodes, and the one of the store, if it is one's."""

    ends: tuple[str, ...]
    store: str = ""


class _Group:
    """Transfers that are equally fast: what each of them has moved since it joined is one sum."""

    def __init__(self, limit: float, store: str) -> None:
        self.limit = limit
        self.store = store
        self.rate = 0.0
        self.moved = 0.0
        self.since_s = 0.0
        self.turn = 0  # of the event that is waited for
        self.ends: list[tuple[float, int]] = []  # at which sum a transfer is done


class Links:
    """All links, in GiB/s: *ends* of each node's, and *stores* by their names."""

    def __init__(self, kernel: Kernel, ends: float, stores: Mapping[str, float]) -> None:
        self._kernel = kernel
        self._ends = ends
        self._stores = stores
        self._on: dict[str, set[int]] = {}
        self._ways: dict[int, Way] = {}
        self._resume: dict[int, Resume] = {}
        self._place: dict[int, tuple[_Group, float]] = {}  # of each transfer: its end there
        self._groups: dict[tuple[str, float], _Group] = {}
        self._numbers = itertools.count()

    def moved(self, gib: float, way: Way) -> Wait:
        """A wait: until so much has gone that way."""

        def wait(resume: Resume) -> None:
            number = next(self._numbers)
            self._ways[number] = way
            self._resume[number] = resume
            for link in (*way.ends, way.store):
                self._on.setdefault(link, set()).add(number)
            self._join(number, gib)
            self._share(way)

        return wait

    def rates(self) -> list[tuple[Way, float]]:
        """What is under way, and how fast."""
        return [(self._ways[number], group.rate) for number, (group, _) in self._place.items()]

    def _join(self, number: int, gib: float) -> None:
        way = self._ways[number]
        limit = min((self._ends / len(self._on[link]) for link in way.ends), default=math.inf)
        group = self._groups.setdefault((way.store, limit), _Group(limit, way.store))
        self._advance(group)
        end = group.moved + gib
        self._place[number] = group, end
        heapq.heappush(group.ends, (end, number))

    def _leave(self, number: int) -> float:
        """Take the transfer out of its group: what it has still to move."""
        group, end = self._place.pop(number)
        self._advance(group)
        return end - group.moved

    def _advance(self, group: _Group) -> None:
        group.moved += group.rate * (self._kernel.now_s - group.since_s)
        group.since_s = self._kernel.now_s

    def _share(self, changed: Way) -> None:
        """Share anew what those get that go over a link of *changed*."""
        stores = {changed.store}
        for number in sorted({one for link in changed.ends for one in self._on[link]}):
            stores.add(self._ways[number].store)
            self._join(number, self._leave(number))
        for group in self._groups.values():
            if group.store in stores:
                self._advance(group)
                share = self._stores.get(group.store, math.inf) / max(1, len(self._on[group.store]))
                group.rate = min(group.limit, share)
                self._await_next(group)

    def _await_next(self, group: _Group) -> None:
        while group.ends and self._place.get(group.ends[0][1]) != (group, group.ends[0][0]):
            heapq.heappop(group.ends)  # it has left
        group.turn += 1
        if group.ends:
            turn = group.turn
            left_s = max(0.0, group.ends[0][0] - group.moved) / group.rate
            self._kernel.at(
                self._kernel.now_s + left_s,
                lambda: self._end(group) if turn == group.turn else None,
            )

    def _end(self, group: _Group) -> None:
        """The first of a group has come."""
        _, number = heapq.heappop(group.ends)
        self._leave(number)
        way = self._ways.pop(number)
        for link in (*way.ends, way.store):
            self._on[link].remove(number)
        self._share(way)
        self._await_next(group)
        self._resume.pop(number)()
