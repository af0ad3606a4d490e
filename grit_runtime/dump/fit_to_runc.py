"""Adapting the images of a dump, whoever made it, to what `runc restore` expects."""

from __future__ import annotations

import os
from typing import Any

from grit_runtime.dump import images
from grit_runtime.errors import ImageError
from grit_runtime.files import confine
from grit_runtime.model import fit_to_runc, mount_plan
from grit_runtime.proto import criu_pb2 as criu
from grit_runtime.wire import criu_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.model.dump import Dump
    from grit_runtime.model.mount_plan import MountPlan

_DESCRIPTORS_LIMIT_BYTES = 64 << 10


def adapt_for_runc(
    images_fd: int, dump: Dump, spec: dict[str, Any], plan: MountPlan
) -> dict[str, bytes]:
    """The files to replace in the dump; none if runc made it in a pod of the same QoS.

    ImageError or FailedPreconditionError for a dump that cannot be adapted.
    """
    (name,) = images.named(dump.names, "mountpoints")
    image = mount_plan.with_mounts(images.load(images_fd, name), dump.mounts)
    image = mount_plan.with_keys(image, plan)
    files = {name: criu_image.serialize(mount_plan.with_own_roots(image))}
    joined = {ns["type"] for ns in spec["linux"]["namespaces"] if ns.get("path")}
    for namespace, kind, with_key in (
        ("network", "netns", fit_to_runc.with_network_key),
        ("pid", "pidns", fit_to_runc.with_pid_key),
    ):
        for name in images.named(dump.names, kind) if namespace in joined else ():
            image = images.load(images_fd, name)
            keyed = with_key(image)
            if keyed is not image:
                files[name] = criu_image.serialize(keyed)
    for pid, core in fit_to_runc.cores_with_oom_score(dump.tasks, dump.cores, spec):
        image = images.load(images_fd, f"core-{pid}.img")
        files[image.name] = criu_image.serialize(criu_image.with_entry(image, 0, core))
    if fit_to_runc.DESCRIPTORS in dump.names:
        _check_descriptors(images_fd)
    else:
        files[fit_to_runc.DESCRIPTORS] = _descriptors(images_fd, dump)
    return files


def _check_descriptors(images_fd: int) -> None:
    with open(confine.open_regular(images_fd, fit_to_runc.DESCRIPTORS), "rb") as file:
        if os.fstat(file.fileno()).st_size > _DESCRIPTORS_LIMIT_BYTES:
            raise ImageError(
                f"{fit_to_runc.DESCRIPTORS}: expected at most {_DESCRIPTORS_LIMIT_BYTES} bytes"
            )
        fit_to_runc.check_descriptors(file.read())


def _descriptors(images_fd: int, dump: Dump) -> bytes:
    """descriptors.json of the first process; the privilege check has required its ids image."""
    init = next(task for task in dump.tasks if task.ppid == 0)
    fds = images.load(images_fd, f"fdinfo-{dump.ids[init.pid].files_id}.img")
    return fit_to_runc.descriptors(criu_image.entries(fds, criu.fdinfo_entry), dump.files)
