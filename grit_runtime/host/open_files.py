"""Whether the files that a dump has by name are in the new pod as they were.

CRIU would end the restore at the first that is not, and not say whose it is.
"""

from __future__ import annotations

import os

from grit_runtime.errors import FailedPreconditionError
from grit_runtime.host import links
from grit_runtime.model import open_files
from grit_runtime.model.mount_plan import dumped_mounts
from grit_runtime.model.open_files import Found
from grit_runtime.model.paths import above
from grit_runtime.wire.criu_image import text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.model.privilege import Dump, Live


def check(rootfs_dir: str, dump: Dump, live: Live, *, image: str) -> None:
    """FailedPreconditionError at the first file that is missing or another.

    The rw layer and the captured volumes must be in place. *image* is what the container had, ""
    if nobody knows. Files of what is in the dump itself, and of the node's own, are not looked at.
    """
    sources = {tree.destination: tree.source for tree in links.trees(rootfs_dir, dump, live)}
    places = {mount.destination for mount in dumped_mounts(dump.mounts)}
    for file in open_files.by_name(dump.files, dump.remaps):
        path = "/" + text(file.name).strip("/")
        place = path if path in places else above(path, places)
        source = sources.get(place)
        if source is None:
            continue
        wrong = open_files.difference(file, _found(source, path.removeprefix(place)))
        if wrong:
            raise FailedPreconditionError(f"file {path} {wrong}; {_remedy(place, image)}")


def _remedy(place: str, image: str) -> str:
    if place == "/":
        return f"expected the file of the checkpoint's image{image and f' {image}'} in the new pod"
    return (
        f"the volume at {place} is not part of the checkpoint: make the file there what it was, or "
        "have it captured (grit.dev/capture) if it is an emptyDir"
    )


def _found(source: str, below: str) -> Found | None:
    """What lies at the path *below*; the mount's own place may be given as a link by the spec."""
    try:
        status = os.lstat(f"{source}/{below.lstrip('/')}") if below else os.stat(source)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Found(status.st_mode, status.st_size)
