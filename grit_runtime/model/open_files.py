"""CRIU's demands on files that a dump has open or mapped, or works in, by name. Pure.

CRIU opens them again in the new pod, and ends the restore unless each has the same size and mode.
Deleted files are created again, or found under another name.

Spec: checkpoint-restore/criu criu/files-reg.c open_path, validate_file and should_check_size,
images/remap-file-path.proto@2cf8f13.
"""

from __future__ import annotations

import re
import stat

from grit_runtime.model.mount_plan import dumped_mounts
from grit_runtime.model.paths import nearest_mount
from grit_runtime.startup.named import NamedTuple
from grit_runtime.wire.criu_image import text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from grit_runtime.model.dump import Dump
    from grit_runtime.proto import criu_pb2 as criu


_PROC = 1  # enum fstype of mnt.proto
_OF_TASK = re.compile(r"/(\d+)(?:/task/(\d+))?(?:/.*)?", re.DOTALL)


class PodFile(NamedTuple):
    """The file of that name in the new pod: its st_mode, its length."""

    mode: int
    size_bytes: int


def by_name(
    files: Iterable[criu.file_entry], remaps: Iterable[criu.remap_file_path_entry]
) -> Iterator[criu.reg_file_entry]:
    """The files that CRIU opens by their own names, in the container's mounts."""
    elsewhere = {remap.orig_id for remap in remaps}
    for file in files:
        if file.HasField("reg") and not file.reg.ext and file.id not in elsewhere:
            yield file.reg


def of_absent_task(dump: Dump) -> criu.reg_file_entry | None:
    """A file of /proc of a thread or process that does not exist when CRIU opens files.

    CRIU opens files after it has made the processes, and makes their threads last. A process that
    had ended is made for that purpose; the first one of a namespace always exists.
    """
    places = zip(dumped_mounts(dump.mounts), dump.mounts, strict=True)
    procs = {mount.destination for mount, entry in places if entry.fstype == _PROC}
    present = {"1", *(str(task.pid) for task in dump.tasks)}
    for file in by_name(dump.files, dump.remaps):
        path = "/" + text(file.name).strip("/")
        place = nearest_mount(path, procs)
        found = _OF_TASK.fullmatch(path.removeprefix(place)) if place in procs else None
        if found and (found[1] not in present or found[2] not in {None, found[1]}):
            return file
    return None


def difference(file: criu.reg_file_entry, found: PodFile | None) -> str | None:
    """How the file of that name differs from what CRIU demands, for messages; None if it fits."""
    size = f"{file.size} bytes long" if file.HasField("size") else None
    if found is None:
        return "is missing" + (f", was {size}" if size else "")
    if size and file.size != found.size_bytes and stat.S_ISREG(found.mode):
        return f"is {found.size_bytes} bytes long, was {file.size}"
    if file.HasField("mode") and file.mode != found.mode:
        return f"has mode 0{found.mode:o}, had 0{file.mode:o}"
    return None
