"""Nodes that get a notice, second by second: which of their pods go on elsewhere in time. Pure.

The order of the pods of a node, how many of them move at once, how many objects the manager works
on and which nodes a pod may go to are the manager's own rules: they are called, not copied.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from grit_runtime.config import Config
from grit_runtime.manager import main, notices, placement
from integration.fleet import inputs
from integration.fleet.kernel import Kernel, Slots, forever
from integration.fleet.links import Links, Way

TYPE_CHECKING = False
if TYPE_CHECKING:
    from integration.fleet.drawing import Fleet, Pod
    from integration.fleet.inputs import Measured
    from integration.fleet.kernel import Process

# What a pod does, or waits for; the last one is its end.
TURN = "a turn on its node"
MANAGER = "the manager"
DUMP = "the dump"
PUSH = "the way into the store"
ROOM = "room on another node"
PULL = "the way to the target"
RESTORE = "the restore"
VERIFIED = "verified"
STAGES = (TURN, MANAGER, DUMP, PUSH, ROOM, PULL, RESTORE, VERIFIED)

_STORE_IN, _STORE_OUT = "into the store", "out of the store"


class Setting(NamedTuple):
    """How the pods go, and what limits them besides what was measured."""

    store_gib_per_s: float | None = None  # of all nodes, in each direction; None: node to node
    has_deltas: bool = False  # schedules have pushed before: what has not changed is not sent
    at_once: float = notices.AT_ONCE  # of one node
    objects: float = main.AT_ONCE  # that the manager works on
    jobs: float = Config().agent_jobs  # of one agent that move data at once


class Outcome(NamedTuple):
    """Where the end of the notice has found a pod."""

    pod: Pod
    stage: str
    is_kept: bool  # its checkpoint is in the store
    verified_s: float = math.inf


def run(fleet: Fleet, measured: Measured, setting: Setting) -> list[Outcome]:
    """What has become of each pod when the notice is over, node by node, in their order."""
    return Simulation(fleet, measured, setting).run()


class Simulation:
    """One notice, for all nodes that have it at once."""

    def __init__(self, fleet: Fleet, measured: Measured, setting: Setting) -> None:
        self.kernel = Kernel()
        self._fleet = fleet
        self._measured = measured
        self._setting = setting
        self._free = dict(fleet.free)
        self._names = sorted(fleet.free)
        store = setting.store_gib_per_s or math.inf
        is_direct = setting.store_gib_per_s is None
        ends = measured.link_gib_per_s if is_direct else measured.store_gib_per_s
        self.links = Links(self.kernel, ends, {_STORE_IN: store, _STORE_OUT: store})
        self._manager = Slots(self.kernel, 1)
        self._objects = Slots(self.kernel, setting.objects)
        self._jobs = {name: Slots(self.kernel, setting.jobs) for name in (*fleet.told, *fleet.free)}
        self.outcomes: dict[str, Outcome] = {}

    def run(self) -> list[Outcome]:
        for pods in self._fleet.told.values():
            turns = Slots(self.kernel, self._setting.at_once)
            for pod in sorted(pods, key=lambda pod: notices.rank(pod.body)):
                self.outcomes[pod.name] = Outcome(pod, TURN, is_kept=False)
                self.kernel.start(self._move(pod, turns))
        self.kernel.run(inputs.NOTICE_S)
        return list(self.outcomes.values())

    def _enter(self, pod: Pod, stage: str, *, is_kept: bool = False) -> None:
        known = self.outcomes[pod.name]
        verified_s = self.kernel.now_s if stage == VERIFIED else math.inf
        self.outcomes[pod.name] = Outcome(pod, stage, known.is_kept or is_kept, verified_s)

    def _move(self, pod: Pod, turns: Slots) -> Process:
        measured = self._measured
        yield turns.taken
        if inputs.NOTICE_S - self.kernel.now_s < notices.LEAST_S:
            return
        self._enter(pod, MANAGER)
        yield self._objects.taken
        yield from self._managed()
        self._enter(pod, DUMP)
        yield self.kernel.sleep(_on_cards(pod, measured.seal, measured.seal_a_doubling))
        if self._setting.store_gib_per_s is not None:
            yield from self._push(pod)
        target = self._target(pod)
        if target is None:
            self._enter(pod, ROOM)
            yield forever
            return
        self._enter(pod, MANAGER)
        yield from self._managed()
        yield from self._pull(pod, target)
        self._enter(pod, RESTORE)
        yield self.kernel.sleep(_on_cards(pod, measured.restore, measured.restore_a_doubling))
        self._enter(pod, VERIFIED)
        self._objects.give_back()
        turns.give_back()

    def _managed(self) -> Process:
        """Half of what is the control plane's: the manager has one processor for all of it."""
        work_s = self._measured.manager_s / 2
        yield self._manager.taken
        yield self.kernel.sleep(work_s)
        self._manager.give_back()
        yield self.kernel.sleep(max(0.0, self._measured.control_s / 2 - work_s))

    def _push(self, pod: Pod) -> Process:
        self._enter(pod, PUSH)
        yield self._jobs[pod.node].taken
        begin_s = self.kernel.now_s
        share = pod.changed if self._setting.has_deltas else 1.0
        yield self.links.moved(pod.gib * share, Way((pod.node,), _STORE_IN))
        read_s = pod.gib / self._measured.hash_gib_per_s
        yield self.kernel.sleep(max(0.0, begin_s + read_s - self.kernel.now_s))
        self._jobs[pod.node].give_back()
        self._enter(pod, PUSH, is_kept=True)

    def _pull(self, pod: Pod, target: str) -> Process:
        self._enter(pod, PULL)
        yield self._jobs[target].taken
        if self._setting.store_gib_per_s is None:
            way = Way((f"out of {pod.node}", f"into {target}"))
        else:
            way = Way((f"into {target}",), _STORE_OUT)
        yield self.links.moved(pod.gib, way)
        self._jobs[target].give_back()

    def _target(self, pod: Pod) -> str | None:
        """The emptiest node of those that the manager lets the scheduler choose from."""
        able = placement.chosen(self._names, pod.name)
        target = max(able, key=lambda name: self._free[name], default=None)
        if target is None or self._free[target] < pod.cards:
            return None
        self._free[target] -= pod.cards
        return target


def _on_cards(pod: Pod, line: inputs.Line, a_doubling: float) -> float:
    """Seconds for a pod whose cards have the same memory each."""
    return line.seconds(pod.gib / pod.cards) * math.pow(a_doubling, math.log2(pod.cards))
