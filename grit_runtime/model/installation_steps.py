"""What an installation has changed on a node, as its journal records it."""

from __future__ import annotations

from grit_runtime.model.steps import Steps
from grit_runtime.startup.named import NamedTuple


class Choice(NamedTuple):
    """What was asked for; the last one holds."""

    version: str  # of grit
    shim: str
    has_agent: bool


class Directory(NamedTuple):
    """A directory is made."""

    path: str


class File(NamedTuple):
    """A file or a link is written whole; *original* is where what was there is kept, or ""."""

    path: str
    original: str
    read_by: str  # containerd, systemd or ""


class Block(NamedTuple):
    """Lines are added to a file that others write too.

    *stub* is what the file was begun with, None if it was there; *original* as in File.
    """

    path: str
    original: str
    read_by: str
    stub: str | None


class TakenBack(NamedTuple):
    """A path is again as it was."""

    path: str


class Leaving(NamedTuple):
    """All is to be taken back, unless a choice comes after it."""

    version: str  # of the grit that takes it back


InstallationStep = Choice | Directory | File | Block | TakenBack | Leaving
STEPS: Steps[InstallationStep] = Steps(InstallationStep)
