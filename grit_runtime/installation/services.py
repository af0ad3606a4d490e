"""Units of systemd. Where systemd does not run, there are none, and nothing is asked of it."""

from __future__ import annotations

import os

from grit_runtime.host import process
from grit_runtime.model.installation_steps import Directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from grit_runtime.installation.changes import Made

UNIT_DIR = "/usr/local/lib/systemd/system"  # for what is installed by hand: systemd.unit(5)
_RUNS = "/run/systemd/system"  # sd_booted(3)


def are_there() -> bool:
    return os.path.isdir(_RUNS)


def among(done: Mapping[str, Made]) -> list[str]:
    """The units among what an installation has made."""
    return [
        os.path.basename(path)
        for path, step in done.items()
        if os.path.dirname(path) == UNIT_DIR and not isinstance(step, Directory)
    ]


def read_anew() -> None:
    """Have systemd read the files of units."""
    _systemctl("daemon-reload")


def start(units: Sequence[str]) -> None:
    """Start what does not run yet."""
    _systemctl("start", *units)


def stop(units: Sequence[str]) -> None:
    _systemctl("stop", *units)


def restart(units: Sequence[str]) -> None:
    _systemctl("restart", *units)


def _systemctl(*words: str) -> None:
    if are_there() and (len(words) > 1 or words == ("daemon-reload",)):
        process.run(["systemctl", *words], token=process.new_token())
