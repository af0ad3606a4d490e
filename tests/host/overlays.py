"""Overlays as containerd mounts them for a container."""

from __future__ import annotations

from grit_runtime.host import overlay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path


def mount(lower: Path, upper: Path, work: Path, path: Path) -> None:
    """Mount one at *path* that keeps its changes in *upper*; *work* is an empty directory."""
    places = {"lowerdir": lower, "upperdir": upper, "workdir": work}
    options = [f"{name}={overlay._escaped(str(place))}" for name, place in places.items()]
    overlay._mount(str(path), ",".join(options))
