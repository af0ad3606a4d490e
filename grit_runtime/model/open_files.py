"""What CRIU demands of the files that a dump has open, mapped or as a directory, by name. Pure.

It opens them again where they are in the new pod, and ends the restore unless each has the size
and the mode that it had. What was deleted it makes anew, or finds under another name.

Spec: checkpoint-restore/criu criu/files-reg.c open_path, validate_file and should_check_size,
images/remap-file-path.proto@2cf8f13.
"""

from __future__ import annotations

import stat
from typing import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from grit_runtime.proto import criu_pb2 as criu


class Found(NamedTuple):
    """What has the name in the new pod: its st_mode, its length."""

    mode: int
    size_bytes: int


def by_name(
    files: Iterable[criu.file_entry], remaps: Iterable[criu.remap_file_path_entry]
) -> Iterator[criu.reg_file_entry]:
    """Those that are opened by their own names, in the container's mounts."""
    elsewhere = {remap.orig_id for remap in remaps}
    for file in files:
        if file.HasField("reg") and not file.reg.ext and file.id not in elsewhere:
            yield file.reg


def difference(file: criu.reg_file_entry, found: Found | None) -> str | None:
    """How what has the name is not what CRIU demands, for people; None if it is."""
    size = f"{file.size} bytes long" if file.HasField("size") else None
    if found is None:
        return "is missing" + (f", was {size}" if size else "")
    if size and file.size != found.size_bytes and stat.S_ISREG(found.mode):
        return f"is {found.size_bytes} bytes long, was {file.size}"
    if file.HasField("mode") and file.mode != found.mode:
        return f"has mode 0{found.mode:o}, had 0{file.mode:o}"
    return None
