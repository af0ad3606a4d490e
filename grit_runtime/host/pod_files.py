"""The open files of a dump, fitted to the new pod."""

from __future__ import annotations

import os
from contextlib import suppress

from grit_runtime.host import images
from grit_runtime.model import pod_files
from grit_runtime.wire import criu_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.model.privilege import Dump, Live


def fitted(images_fd: int, dump: Dump, live: Live) -> tuple[Dump, dict[str, bytes]]:
    """The dump as it is to be restored, and the images of it that differ from those there."""
    stamped = _stamped(live)
    files = list(dump.files)
    found = ((index, pod_files.fitted(file, stamped)) for index, file in enumerate(files))
    changed = {index: file for index, file in found if file is not None}
    if not changed:
        return dump, {}
    (name,) = images.named(dump.names, "files")
    image = images.load(images_fd, name)
    for index, file in changed.items():
        files[index] = file
        image = criu_image.with_entry(image, index, file)
    return dump._replace(files=tuple(files)), {name: criu_image.serialize(image)}


def _stamped(live: Live) -> dict[str, str]:
    """Of the pod's volumes that kubelet keeps so: the directory that has their files now."""
    found = {}
    for mount in live.mounts:
        if mount.fs_type == "bind":
            with suppress(OSError):  # most have no such link
                directory = os.readlink(f"{mount.source}/..data")
                if pod_files.is_stamped(directory):
                    found[mount.destination] = directory
    return found
