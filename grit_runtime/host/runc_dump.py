"""The images of a dump as `runc restore` can take them, whoever made it."""

from __future__ import annotations

import os
from typing import Any

from grit_runtime.errors import ImageError
from grit_runtime.host import confine, images
from grit_runtime.model import mount_plan, runc_dump
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.model.mount_plan import MountPlan
    from grit_runtime.model.privilege import Dump

_DESCRIPTORS_LIMIT_BYTES = 64 << 10


def adapted(images_fd: int, dump: Dump, spec: dict[str, Any], plan: MountPlan) -> dict[str, bytes]:
    """The files to put in front of those of the dump; none for one of runc's with the pod's QoS.

    ImageError or FailedPreconditionError for a dump that no change makes fit.
    """
    files = {}
    if plan.remapped:
        (name,) = images.named(dump.names, "mountpoints")
        image = mount_plan.with_keys(images.load(images_fd, name), plan)
        files[name] = criu_image.serialize(image)
    joined = {ns["type"] for ns in spec["linux"]["namespaces"] if ns.get("path")}
    for namespace, kind, with_key in (
        ("network", "netns", runc_dump.with_network_key),
        ("pid", "pidns", runc_dump.with_pid_key),
    ):
        for name in images.named(dump.names, kind) if namespace in joined else ():
            image = images.load(images_fd, name)
            keyed = with_key(image)
            if keyed is not image:
                files[name] = criu_image.serialize(keyed)
    for pid, core in runc_dump.cores_with_oom_score(dump.tasks, dump.cores, spec):
        image = images.load(images_fd, f"core-{pid}.img")
        files[image.name] = criu_image.serialize(criu_image.with_entry(image, 0, core))
    if runc_dump.DESCRIPTORS in dump.names:
        _check_descriptors(images_fd)
    else:
        files[runc_dump.DESCRIPTORS] = _descriptors(images_fd, dump)
    return files


def _check_descriptors(images_fd: int) -> None:
    with open(confine.open_regular(images_fd, runc_dump.DESCRIPTORS), "rb") as file:
        if os.fstat(file.fileno()).st_size > _DESCRIPTORS_LIMIT_BYTES:
            raise ImageError(
                f"{runc_dump.DESCRIPTORS}: expected at most {_DESCRIPTORS_LIMIT_BYTES} bytes"
            )
        runc_dump.check_descriptors(file.read())


def _descriptors(images_fd: int, dump: Dump) -> bytes:
    """descriptors.json of the first process; it has an ids image, the privilege check says."""
    init = next(task for task in dump.tasks if task.ppid == 0)
    fds = images.load(images_fd, f"fdinfo-{dump.ids[init.pid].files_id}.img")
    return runc_dump.descriptors(criu_image.entries(fds, criu.fdinfo_entry), dump.files)
