"""The steps of a checkpoint that its journal records."""

from __future__ import annotations

from grit_runtime.model import outcomes
from grit_runtime.model.memory_range import MemoryFile
from grit_runtime.model.steps import Steps
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from grit_runtime.model.outcomes import Outcome


class Begin(NamedTuple):
    """The operation's token, runc's state directory, and the record if the engine is killed.

    CRIU works in *criu_dir*, if it is not the pod's.
    """

    token: str
    runc_root: str
    outcome: Outcome | None = None
    criu_dir: str | None = None

    @staticmethod
    def from_json(outcome: dict[str, Any] | None = None, **fields: str) -> Begin:
        return Begin(**fields, outcome=outcomes.from_json(outcome) if outcome else None)


class Directory(NamedTuple):
    """A directory is made."""

    path: str


class Thaw(NamedTuple):
    """A container runs that somebody else had paused; *container* is its id."""

    container: str


class Freeze(NamedTuple):
    """A container is frozen; *container* is its id."""

    container: str


class Gpu(NamedTuple):
    """The GPUs are taken from processes."""

    pids: tuple[int, ...]
    started: tuple[int | None, ...] = ()  # at these ticks of the clock, if that is known


class Standing(NamedTuple):
    """Processes that `grit gpu` held are frozen; they must not run when they are thawed."""

    pids: tuple[int, ...]
    started: tuple[int | None, ...] = ()  # at these ticks of the clock, if that is known


class Kept(NamedTuple):
    """Processes stand, frozen or not, until their memory is back or they are frozen again."""

    pids: tuple[int, ...]
    started: tuple[int | None, ...] = ()  # at these ticks of the clock, if that is known


class Memory(NamedTuple):
    """Memory is in files, and taken from the processes, which started at these ticks."""

    saved: tuple[MemoryFile, ...]
    started: tuple[int | None, ...]

    @staticmethod
    def from_json(saved: tuple[list[Any], ...], started: tuple[int | None, ...]) -> Memory:
        return Memory(tuple(MemoryFile.from_json(*one) for one in saved), started)


class MemoryBack(NamedTuple):
    """The memory is back in the processes."""


class Silence(NamedTuple):
    """Nothing leaves a network namespace."""

    path: str


class Link(NamedTuple):
    """A deleted file has a name again, at *path* below *directory*."""

    directory: str
    path: str


class Hold(NamedTuple):
    """The hold of the pod is recorded in held_pods."""

    pod_uid: str


class Sealing(NamedTuple):
    """The directory *staging_dir* gets the name *path*, and becomes a checkpoint."""

    path: str
    staging_dir: str
    manifest_sha256: str


class Sealed(NamedTuple):
    """The checkpoint is final, and the pod runs."""


class Frozen(NamedTuple):
    """Sealed: the pod stays frozen, and its journal kept, until it is resumed."""


class Stop(NamedTuple):
    """Sealed: the pod is stopped."""


Step = (
    Begin
    | Directory
    | Thaw
    | Freeze
    | Gpu
    | Standing
    | Kept
    | Memory
    | MemoryBack
    | Silence
    | Link
    | Hold
    | Sealing
    | Sealed
    | Frozen
    | Stop
)
STEPS: Steps[Step] = Steps(Step)
