"""The steps of an attempt to restore a container that its journal records."""

from __future__ import annotations

from grit_runtime.model import outcomes
from grit_runtime.model.steps import Steps
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from grit_runtime.model.outcomes import Outcome


class Begin(NamedTuple):
    """The container, and the record if nothing more is recorded."""

    outcome: Outcome

    @staticmethod
    def from_json(outcome: dict[str, Any]) -> Begin:
        return Begin(outcomes.from_json(outcome))


class Copy(NamedTuple):
    """The checkpoint is copied to where nobody else can write."""

    path: str


class Claim(NamedTuple):
    """A pod goes on from a checkpoint, if the process with this start lives or has restored it."""

    manifest_sha256: str
    pid: int
    started: int | None
    is_clone: bool = False  # which the first versions did not say


class RwLayer(NamedTuple):
    """The root filesystem is changed."""


class Volumes(NamedTuple):
    """The container uses volumes of the sandbox that this directory is of."""

    pod_dir: str
    container_id: str


class Addresses(NamedTuple):
    """The loopback interface of a network namespace gets addresses."""

    path: str
    addresses: tuple[str, ...]


class Mount(NamedTuple):
    """A filesystem is mounted."""

    path: str


class Log(NamedTuple):
    """The container's log, which was empty, is filled with so much."""

    path: str
    size_bytes: int

    @staticmethod
    def from_json(path: str, size_bytes: str) -> Log:
        return Log(path, int(size_bytes))


class Restore(NamedTuple):
    """runc restores the container; *work_dir* is CRIU's, unknown to the first versions."""

    token: str
    program: str
    global_options: tuple[str, ...]
    container_id: str
    cgroups_path: str
    work_dir: str | None = None


class Gpu(NamedTuple):
    """Processes get their GPU memory."""

    pids: tuple[int, ...]
    token: str


class Restored(NamedTuple):
    """The container is restored and verified; the record becomes final with `start`."""

    outcome: Outcome

    @staticmethod
    def from_json(outcome: dict[str, Any]) -> Restored:
        return Restored(outcomes.from_json(outcome))


class Started(NamedTuple):
    """`start` was called."""


Step = (
    Begin
    | Copy
    | Claim
    | RwLayer
    | Volumes
    | Addresses
    | Mount
    | Log
    | Restore
    | Gpu
    | Restored
    | Started
)
STEPS: Steps[Step] = Steps(Step)
