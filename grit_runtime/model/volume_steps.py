"""The steps of a sandbox's volumes: which are filled, and which containers rely on them."""

from __future__ import annotations

from grit_runtime.model.steps import Steps
from grit_runtime.startup.named import NamedTuple


class Use(NamedTuple):
    """A container relies on a volume, which is the directory *path* on the node."""

    volume: str
    path: str
    container_id: str


class Filled(NamedTuple):
    """A volume has the content that the checkpoint saved."""

    volume: str


class LetGo(NamedTuple):
    """A container relies on no volume any more."""

    container_id: str


Step = Use | Filled | LetGo
STEPS: Steps[Step] = Steps(Step)
