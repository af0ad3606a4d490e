"""Carrying a pod's own volumes: saved while the pod is frozen, put back once in the new sandbox.

The containers of a pod share its volumes and are restored one by one, so the first that mounts a
volume fills it. A journal of the sandbox, locked while it is changed, lists which container uses
which volume; a volume that only a failed attempt used is emptied again.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress

from grit_runtime.errors import FailedPreconditionError, InvalidArgumentError, VolumeError
from grit_runtime.files import confine, layer_apply, layer_save
from grit_runtime.host import journal, overlay, procfs
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import privilege, volumes
from grit_runtime.model.volume_steps import STEPS, Filled, LetGo, Use
from grit_runtime.pod import bundle

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence, Set
    from typing import Any

    from grit_runtime.model.volumes import Mounted
    from grit_runtime.pod.running_container import RunningContainer

JOURNAL = "volumes.journal"

_VERBS = {True: "writes to", False: "needs"}


def choose(
    containers: Sequence[RunningContainer], names: Set[str], written_before: Sequence[str]
) -> dict[str, str]:
    """The volumes to save, paths by name; *names* are those that the pod or the caller asks for.

    *written_before* are the sources of what the pod's containers that have ended could write to.

    InvalidArgumentError for a volume that no container has; FailedPreconditionError if a process
    writes to a volume that stays behind, or needs files there that nobody will create again, and
    for a volume with another mounted inside.
    """
    mounted = {container.name: _existing(container.spec) for container in containers}
    paths = volumes.captured([volume for some in mounted.values() for volume in some], names)
    chosen = {name: path for name, path in paths.items() if name in names or os.listdir(path)}
    strange = sorted(names - chosen.keys() - {"shm"})
    if strange:
        raise InvalidArgumentError(
            f"capture {strange[0]}: no running container of the pod mounts an emptyDir of that name"
        )
    for name, path in chosen.items():
        _refuse_mounts_inside(name, path)
    for container in containers:
        behind = [volume for volume in mounted[container.name] if volume.name not in chosen]
        _refuse_users(container, behind, written_before)
    return chosen


def places(bundle_dir: str, spec: dict[str, Any], chosen: Mapping[str, str]) -> dict[str, str]:
    """The sources of the volumes *chosen*, or parts of them, by their places in a container."""
    sources = {mount["destination"]: mount["source"] for mount in spec.get("mounts") or ()}
    rootfs_dir = bundle.rootfs(bundle_dir, spec)
    return {
        bundle.resolve(rootfs_dir, volume.destination): sources[volume.destination]
        for volume in volumes.mounted(spec)
        if volume.name in chosen
    }


def save(chosen: dict[str, str], directory: str) -> tuple[str, ...]:
    """Save the volumes into the checkpoint; returns their names. Nothing may change them."""
    os.mkdir(f"{directory}/pod")
    for name, path in chosen.items():
        try:
            with (
                closing_fd(confine.open_dir(path)) as volume_fd,
                open(f"{directory}/{volumes.file_name(name)}", "xb") as file,
            ):
                layer_save.save(volume_fd, file.fileno())
        except FailedPreconditionError as error:
            raise VolumeError(f"volume {name}: {error}") from error
    return tuple(chosen)


def put_back(
    checkpoint_fd: int, captured: Iterable[str], spec: dict[str, Any], pod_dir: str, user: str
) -> None:
    """Fill the captured volumes that the container *user* mounts, unless another's restore did.

    The content of a volume is replaced, because the processes rely on what was there. Blocks while
    another container's restore fills a volume. `release` undoes it.
    """
    paths = {volume.name: volume.path for volume in _existing(spec)}
    names = [name for name in captured if name in paths]
    if not names:
        return
    uses = journal.hold(f"{pod_dir}/{JOURNAL}", STEPS)
    try:
        filled = volumes.holding(uses.steps()).filled
        for name in names:
            uses.record(Use(name, paths[name], user))
            if name not in filled:
                _fill(checkpoint_fd, name, paths[name], privilege.devices(spec))
                uses.record(Filled(name))
    finally:
        uses.close()


def release(pod_dir: str, user: str) -> None:
    """Empty the volumes that only *user* uses, a container that was not restored after all."""
    uses = journal.adopt(f"{pod_dir}/{JOURNAL}", STEPS, wait=True)
    if uses is None:
        return
    holding = volumes.holding(uses.steps())
    for path in holding.only(user):
        with suppress(FileNotFoundError):  # the sandbox, or the pod, went first
            _clear(path)
    if holding.is_needed_without(user):
        uses.record(LetGo(user))
        uses.close()
    else:
        uses.end()


def forget(pod_dir: str) -> None:
    """Drop the journal of a sandbox that is being deleted."""
    uses = journal.adopt(f"{pod_dir}/{JOURNAL}", STEPS, wait=True)
    if uses is not None:
        uses.end()


def _existing(spec: dict[str, Any]) -> list[Mounted]:
    """The volumes that config.json mounts, except subPaths of volumes of other types."""
    return [volume for volume in volumes.mounted(spec) if os.path.isdir(volume.path)]


def _refuse_users(
    container: RunningContainer, behind: Sequence[Mounted], written_before: Sequence[str]
) -> None:
    if not behind:
        return
    rootfs_dir = bundle.rootfs(container.bundle_dir, container.spec)
    places = {
        mount["destination"]: bundle.resolve(rootfs_dir, mount["destination"])
        for mount in container.spec.get("mounts") or ()
    }
    behind = [volume._replace(destination=places[volume.destination]) for volume in behind]
    for pid in sorted(container.pids()):
        for file in procfs.files(pid):
            volume = volumes.holder(file.path, behind, places.values())
            if volume is None or (
                not file.is_written and volumes.is_filled_anew(volume, written_before)
            ):
                continue
            raise VolumeError(
                f"process {pid} in container {container.name} {_VERBS[file.is_written]} "
                f"{file.path}, which would stay behind with its volume; say grit.dev/capture: "
                f"{volume.name} or --capture {volume.name}"
            )


def _fill(
    checkpoint_fd: int, name: str, path: str, allowed_devices: Set[layer_apply.Device]
) -> None:
    _refuse_mounts_inside(name, path)
    with (
        closing_fd(confine.open_regular(checkpoint_fd, volumes.file_name(name))) as layer_fd,
        closing_fd(confine.open_dir(path)) as volume_fd,
    ):
        try:
            _remove_files(volume_fd)
            layer_apply.apply(layer_fd, volume_fd, allowed_devices=allowed_devices)
        except OSError as error:
            where = f"volume {name}: {error.filename}"
            raise OSError(error.errno, error.strerror, where) from error
        except FailedPreconditionError as error:
            raise VolumeError(f"volume {name}: {error}") from error


def _clear(path: str) -> None:
    if overlay.mounts_below(path):  # then `_fill` refused, and the files there are not its own
        return
    with closing_fd(confine.open_dir(path)) as volume_fd:
        _remove_files(volume_fd)


def _refuse_mounts_inside(name: str, path: str) -> None:
    """Refuse mounts inside a volume: their files may be neither saved nor removed."""
    inside = overlay.mounts_below(path)
    if inside:
        raise VolumeError(
            f"volume {name}: {inside[0]} is mounted inside it, and would be taken for its own "
            "files; unmount it, or mount it in the container alone"
        )


def _remove_files(volume_fd: int) -> None:
    """Remove all but directories: kubelet has bind-mounted those that are a subPath."""
    for entry in confine.walk(volume_fd):
        if not stat.S_ISDIR(entry.stat.st_mode):
            os.unlink(entry.name, dir_fd=entry.parent_fd)
