"""The process that becomes a program which sees other files than there are."""

from __future__ import annotations

import ctypes
import os
import stat
from collections import defaultdict
from pathlib import Path

from grit_runtime.host import linux, mounts
from grit_runtime.host.mounts import Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_CLONE_NEWNS = 0x20000
# Is on every Linux, and a program that only prints its configuration needs nothing of it. What
# overlayfs keeps the files above in must not lie on an overlay itself.
_SCRATCH = "/tmp"  # noqa: S108  a tmpfs of our own is mounted there, for this process alone


def main(asked: tuple[str, list[str], Mapping[str, bytes | None]]) -> None:
    """Become a program, given by its path and argv, for which files have the content given.

    None stands for a file that is not there.
    """
    program, argv, staged = asked
    if staged:
        _lay_over(staged)
    os.execv(program, argv)  # noqa: S606  no shell is the point


def _lay_over(staged: Mapping[str, bytes | None]) -> None:
    linux.call("unshare", "mount namespace", _CLONE_NEWNS)
    nothing = ctypes.c_char_p()
    flags = linux.MS_REC | linux.MS_PRIVATE
    linux.call("mount", "/", nothing, b"/", nothing, flags, nothing)
    mounts.mount(Mount("tmpfs", "tmpfs", "", ["mode=0700"]), _SCRATCH)
    below: defaultdict[str, list[str]] = defaultdict(list)
    for path in staged:
        below[existing_directory(path)].append(path)
    # From above: what is mounted on a directory hides what was mounted below it before.
    for number, (directory, paths) in enumerate(sorted(below.items())):
        upper, work = (f"{_SCRATCH}/{name}-{number}" for name in ("upper", "work"))
        os.mkdir(upper)
        os.mkdir(work)
        for path in paths:
            _put(f"{upper}/{os.path.relpath(path, directory)}", staged[path])
        options = [f"lowerdir={directory}", f"upperdir={upper}", f"workdir={work}"]
        mounts.mount(Mount("overlay", "overlay", "", options), directory)


def _put(path: str, content: bytes | None) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if content is None:
        os.mknod(path, stat.S_IFCHR)  # for overlayfs: what lies below is not there
    else:
        Path(path).write_bytes(content)


def existing_directory(path: str) -> str:
    """The nearest directory above *path* that is there."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path
