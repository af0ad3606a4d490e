"""Restoring what a container has on the disk: its rw layer, its volumes, its log."""

from __future__ import annotations

import os
from contextlib import suppress

from grit_runtime import log, paths
from grit_runtime.files import checkpoint_dir, confine, layer_apply
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import (
    checkpointctl,
    privilege,
)
from grit_runtime.model import restore_steps as steps
from grit_runtime.pod import bundle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.host.journal import Journal
    from grit_runtime.model.annotations import Identity
    from grit_runtime.model.manifest import Manifest
    from grit_runtime.restore.attempts import Request


def apply_rw_layer(
    request: Request, attempt: Journal[steps.Step], checkpoint_fd: int, name: str
) -> None:
    """Make the root filesystem what it was when it was dumped.

    Only a checkpoint of another program can be without rw layer.
    """
    attempt.record(steps.RwLayer())
    rootfs_dir = bundle.rootfs(request.bundle_dir, request.spec)
    with closing_fd(confine.open_dir(rootfs_dir)) as root_fd:  # open, it keeps that mounted
        deleted = checkpoint_dir.read_optional(checkpoint_fd, f"{name}/deleted.files")
        if deleted is not None:
            layer_apply.delete(root_fd, checkpointctl.deleted_files(deleted))
        layer_fd = checkpoint_dir.open_optional(checkpoint_fd, f"{name}/rootfs-diff.tar")
        if layer_fd is not None:
            allowed_devices = privilege.devices(request.spec)
            with closing_fd(layer_fd):
                layer_apply.apply(layer_fd, root_fd, allowed_devices=allowed_devices)


def put_back_volumes(
    request: Request,
    attempt: Journal[steps.Step],
    checkpoint_fd: int,
    manifest: Manifest,
    timeline: log.Timeline,
) -> None:
    if not manifest.captured or request.order.keeps_volumes:
        return
    from grit_runtime.pod import volumes  # most checkpoints have none

    user = request.container_id
    with timeline.phase("volumes"):
        attempt.record(steps.Volumes(request.pod_dir, user))
        volumes.put_back(checkpoint_fd, manifest.captured, request.spec, request.pod_dir, user)


def carry_log(
    identity: Identity | None, checkpoint_fd: int, name: str, attempt: Journal[steps.Step]
) -> None:
    """Write the container's earlier log before what it will write.

    containerd already has the new log open for append; it is filled only if it is empty.
    """
    if identity is None:
        return
    pod = f"{identity.namespace}_{identity.pod}_{identity.pod_uid}"
    directory = f"{paths.POD_LOGS_DIR}/{pod}/{identity.container}"
    path = _empty_newest_log(directory)
    if path is None:
        log.info("container log not carried: no empty log", directory=directory)
        return
    data = checkpoint_dir.read_optional(
        checkpoint_fd, f"{name}/container.log", checkpoint_dir.CONTAINER_LOG_LIMIT_BYTES
    )
    if data is None:
        return
    attempt.record(steps.Log(path, len(data)))
    with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW), "wb") as target:
        target.write(data)


def _empty_newest_log(directory: str) -> str | None:
    """The log with the highest attempt number, if it is a regular file and empty."""
    with suppress(FileNotFoundError):
        numbers = [name[:-4] for name in os.listdir(directory) if name.endswith(".log")]
        attempts = [int(number) for number in numbers if number.isdigit()]
        if attempts:
            path = f"{directory}/{max(attempts)}.log"
            if os.path.isfile(path) and not os.path.islink(path) and not os.path.getsize(path):
                return path
    return None
