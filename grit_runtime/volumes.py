"""Carrying a pod's own volumes: saved while the pod is frozen, put back once in the new sandbox.

The containers of a pod share its volumes and are restored one by one, so the first that mounts a
volume fills it. Who relies on what is in a journal of the sandbox, held while it is changed; a
volume that only a failed attempt relied on is emptied again.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import NamedTuple

from grit_runtime.errors import FailedPreconditionError, InvalidArgumentError
from grit_runtime.host import bundle, confine, journal, overlay, process, rootfs_diff
from grit_runtime.model import privilege, volumes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence, Set
    from typing import Any

    from grit_runtime.model.volumes import Mounted

JOURNAL = "volumes.journal"

_VERBS = {True: "writes to", False: "needs"}


class Frozen(NamedTuple):
    """A container of the source: its name, bundle, config.json and processes."""

    name: str
    bundle_dir: str
    spec: dict[str, Any]
    pids: Set[int]


def choose(
    containers: Sequence[Frozen], asked: Set[str], written_before: Sequence[str]
) -> dict[str, str]:
    """The volumes to save, paths by name; refuses what could not come back.

    *written_before* are the sources of what the pod's containers that have ended could write to.

    InvalidArgumentError for one that no container has, FailedPreconditionError where a process
    writes to a volume that stays behind or needs what nobody will put there again, and for a
    volume with another inside.
    """
    found = {container.name: _existing(container.spec) for container in containers}
    paths = volumes.captured([one for some in found.values() for one in some], asked)
    chosen = {name: path for name, path in paths.items() if name in asked or os.listdir(path)}
    strange = sorted(asked - chosen.keys() - {"shm"})
    if strange:
        raise InvalidArgumentError(
            f"capture {strange[0]}: no running container of the pod mounts an emptyDir of that name"
        )
    for name, path in chosen.items():
        _refuse_mounts_inside(name, path)
    for container in containers:
        behind = [one for one in found[container.name] if one.name not in chosen]
        _refuse_users(container, behind, written_before)
    return chosen


def places(bundle_dir: str, spec: dict[str, Any], chosen: Mapping[str, str]) -> dict[str, str]:
    """Where a container has the volumes *chosen*, or parts of them, and what it mounts there."""
    sources = {mount["destination"]: mount["source"] for mount in spec.get("mounts") or ()}
    rootfs_dir = bundle.rootfs(bundle_dir, spec)
    return {
        bundle.resolve(rootfs_dir, volume.destination): sources[volume.destination]
        for volume in volumes.mounted(spec)
        if volume.name in chosen
    }


def save(chosen: dict[str, str], directory: str) -> tuple[str, ...]:
    """Save the volumes into the checkpoint; their names. Nothing may change them meanwhile."""
    os.mkdir(f"{directory}/pod")
    for name, path in chosen.items():
        volume_fd = confine.open_dir(path)
        try:
            with open(f"{directory}/{volumes.file_name(name)}", "xb") as file:
                rootfs_diff.save(volume_fd, file.fileno())
        except FailedPreconditionError as error:
            raise FailedPreconditionError(f"volume {name}: {error}") from error
        finally:
            os.close(volume_fd)
    return tuple(chosen)


def put_back(
    checkpoint_fd: int, captured: Iterable[str], spec: dict[str, Any], pod_dir: str, user: str
) -> None:
    """Fill the captured volumes that the container *user* mounts, unless another's restore did.

    What a volume held is replaced: it is to be what the processes know. Blocks while another
    container's restore fills one. Taken back by `let_go`.
    """
    paths = {one.name: one.path for one in _existing(spec)}
    wanted = [name for name in captured if name in paths]
    if not wanted:
        return
    held = journal.hold(f"{pod_dir}/{JOURNAL}")
    try:
        filled = volumes.holding(held.steps()).filled
        for name in wanted:
            held.record("use", volume=name, path=paths[name], container_id=user)
            if name not in filled:
                _fill(checkpoint_fd, name, paths[name], privilege.devices(spec))
                held.record("filled", volume=name)
    finally:
        held.close()


def let_go(pod_dir: str, user: str) -> None:
    """The container *user* was not restored after all: empty what nobody else relies on."""
    held = journal.adopt(f"{pod_dir}/{JOURNAL}", wait=True)
    if held is None:
        return
    holding = volumes.holding(held.steps())
    for path in holding.only(user):
        with suppress(FileNotFoundError):  # the sandbox, or the pod, went first
            _clear(path)
    if holding.is_needed_without(user):
        held.record("let go", container_id=user)
        held.close()
    else:
        held.end()


def forget(pod_dir: str) -> None:
    """The sandbox is being deleted."""
    held = journal.adopt(f"{pod_dir}/{JOURNAL}", wait=True)
    if held is not None:
        held.end()


def _existing(spec: dict[str, Any]) -> list[Mounted]:
    """What config.json mounts, less subPaths of volumes of other types."""
    return [one for one in volumes.mounted(spec) if os.path.isdir(one.path)]


def _refuse_users(
    container: Frozen, behind: Sequence[Mounted], written_before: Sequence[str]
) -> None:
    if not behind:
        return
    rootfs_dir = bundle.rootfs(container.bundle_dir, container.spec)
    places = {
        mount["destination"]: bundle.resolve(rootfs_dir, mount["destination"])
        for mount in container.spec.get("mounts") or ()
    }
    behind = [volume._replace(destination=places[volume.destination]) for volume in behind]
    for pid in sorted(container.pids):
        for file in process.files(pid):
            volume = volumes.holder(file.path, behind, places.values())
            if volume is None or (
                not file.is_written and volumes.is_filled_anew(volume, written_before)
            ):
                continue
            raise FailedPreconditionError(
                f"process {pid} in container {container.name} {_VERBS[file.is_written]} "
                f"{file.path}, which would stay behind with its volume; say grit.dev/capture: "
                f"{volume.name} or --capture {volume.name}"
            )


def _fill(
    checkpoint_fd: int, name: str, path: str, allowed_devices: Set[rootfs_diff.Device]
) -> None:
    _refuse_mounts_inside(name, path)
    layer_fd = confine.open_regular(checkpoint_fd, volumes.file_name(name))
    volume_fd = confine.open_dir(path)
    try:
        _remove_files(volume_fd)
        rootfs_diff.apply(layer_fd, volume_fd, allowed_devices=allowed_devices)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"volume {name}: {error.filename}") from error
    except FailedPreconditionError as error:
        raise FailedPreconditionError(f"volume {name}: {error}") from error
    finally:
        os.close(volume_fd)
        os.close(layer_fd)


def _clear(path: str) -> None:
    if overlay.mounts_below(path):  # then nothing was filled, and what is there is not ours
        return
    volume_fd = confine.open_dir(path)
    try:
        _remove_files(volume_fd)
    finally:
        os.close(volume_fd)


def _refuse_mounts_inside(name: str, path: str) -> None:
    """What is mounted in a volume is not the volume's: not to be saved, nor to be removed."""
    inside = overlay.mounts_below(path)
    if inside:
        raise FailedPreconditionError(
            f"volume {name}: {inside[0]} is mounted inside it, and would be taken for its own "
            "files; unmount it, or mount it in the container alone"
        )


def _remove_files(volume_fd: int) -> None:
    """All but the directories: kubelet has bound those that containers mount by subPath."""
    for entry in confine.walk(volume_fd):
        if not stat.S_ISDIR(entry.stat.st_mode):
            os.unlink(entry.name, dir_fd=entry.parent_fd)
