"""Checking that the files which a dump refers to by name are unchanged in the new pod.

CRIU would end the restore at the first that is not, without saying whose it is.
"""

from __future__ import annotations

import os

from grit_runtime.dump import symlinks
from grit_runtime.errors import FileDiffersError
from grit_runtime.model import open_files
from grit_runtime.model.mount_plan import dumped_mounts
from grit_runtime.model.open_files import PodFile
from grit_runtime.model.paths import nearest_mount
from grit_runtime.wire.criu_image import text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.model.dump import Dump
    from grit_runtime.model.live_pod import LivePod


def check(rootfs_dir: str, dump: Dump, live: LivePod, *, image: str) -> None:
    """FailedPreconditionError at the first file that is missing or different.

    The rw layer and the captured volumes must be in place. *image* is the container's, "" if it is
    unknown. Files on mounts whose content is in the dump, or is the node's, are not checked.
    """
    sources = {tree.destination: tree.source for tree in symlinks.trees(rootfs_dir, dump, live)}
    places = {mount.destination for mount in dumped_mounts(dump.mounts)}
    for file in open_files.by_name(dump.files, dump.remaps):
        path = "/" + text(file.name).strip("/")
        place = path if path in places else nearest_mount(path, places)
        source = sources.get(place)
        if source is None:
            continue
        wrong = open_files.difference(file, _found(source, path.removeprefix(place)))
        if wrong:
            raise FileDiffersError(f"file {path} {wrong}; {_remedy(place, image)}")


def _remedy(place: str, image: str) -> str:
    if place == "/":
        return f"expected the file of the checkpoint's image{image and f' {image}'} in the new pod"
    return (
        f"the volume at {place} is not part of the checkpoint: make the file there what it was, or "
        "have it captured (grit.dev/capture) if it is an emptyDir"
    )


def _found(source: str, below: str) -> PodFile | None:
    """The file at the path *below*; the spec may give the mount's own place as a link."""
    try:
        status = os.lstat(f"{source}/{below.lstrip('/')}") if below else os.stat(source)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return PodFile(status.st_mode, status.st_size)
