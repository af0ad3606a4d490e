"""Dumping the frozen containers of a pod: memory, rw layer, log and what describes them."""

from __future__ import annotations

import json
import os
import shutil
from typing import NamedTuple

from grit_runtime import gpu, log, volumes
from grit_runtime.errors import CommandError, FailedPreconditionError
from grit_runtime.host import (
    checkpoint_dir,
    confine,
    criu,
    gpu_facts,
    images,
    link_remaps,
    overlay,
    rootfs_diff,
    staged_memory,
)
from grit_runtime.model import checkpointctl, connections, mount_plan
from grit_runtime.model import manifest as manifests

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.host.containerd import Container, Pod
    from grit_runtime.host.digest import FileDigest
    from grit_runtime.host.journal import Journal
    from grit_runtime.host.process import Child
    from grit_runtime.host.process_memory import Saved
    from grit_runtime.host.runc import Runc

_NO_PLUGINS_DIR = "/run/grit/no-plugins"

# Of a deleted file CRIU keeps what is in it, up to a limit of its own; ours is the disk.
GHOST_LIMIT_BYTES = 1 << 40

# A runc that has the flag tells CRIU no without it, whatever its configuration says.
LINK_REMAP = "--link-remap"


class Dumps(NamedTuple):
    """What the dumps of one checkpoint have in common."""

    tool: Runc
    flags: list[str]
    held: Journal
    containers: dict[str, gpu.Container]  # by id
    chosen: dict[str, str]  # volumes that go along: paths by name
    versions: tuple[Child, Child]  # of CRIU and runc, which were asked for theirs
    pod: Pod
    staging_dir: str
    work_dir: str
    timeline: log.Timeline
    lines: dict[str, tuple[str, ...]]  # of CRIU's configuration file, by container
    tcp: dict[str, connections.DumpOptions]
    gpus: dict[str, gpu.Described]
    saved: list[Saved]  # memory that was taken from processes before
    digests: dict[str, FileDigest]  # of files in the checkpoint, those that are known already
    driver_version: str


def dump(dumps: Dumps, container: Container) -> manifests.Container:
    """Everything of one frozen container, into its directory of the checkpoint."""
    directory = f"{dumps.staging_dir}/{container.name}"
    images_dir = f"{directory}/checkpoint"
    criu_dir = f"{dumps.work_dir}/{container.name}"
    os.makedirs(images_dir)
    os.makedirs(criu_dir)
    frozen = dumps.containers[container.id]
    bundle_dir = frozen.bundle_dir
    # The shim unmounts the rootfs as soon as a container ends, so its place is read before.
    upper_dir = overlay.upper_dir(f"{bundle_dir}/rootfs")
    with dumps.timeline.phase("dump", container=container.name) as entry:
        _criu_dump(dumps, container, images_dir, criu_dir)
        _keep_links(dumps, frozen, images_dir)
        entry["size_bytes"] = sum(file.stat().st_size for file in os.scandir(images_dir))
        _add_saved_memory(dumps, frozen, images_dir)
    with dumps.timeline.phase("rw layer", container=container.name) as entry:
        entry["size_bytes"] = _save_rw_layer(upper_dir, f"{directory}/rootfs-diff.tar")
    for name in ("dump.log", "stats-dump"):
        shutil.copyfile(f"{criu_dir}/{name}", f"{directory}/{name}")
    _copy_log(container.log_path, f"{directory}/container.log")
    shutil.copyfile(f"{bundle_dir}/config.json", f"{directory}/spec.dump")
    _write_metadata(directory, container)
    return _described(dumps, container, images_dir)


def _criu_dump(dumps: Dumps, container: Container, images_dir: str, criu_dir: str) -> None:
    os.makedirs(_NO_PLUGINS_DIR, mode=0o700, exist_ok=True)
    flags = ["--leave-running", "--file-locks", "--image-path", images_dir, "--work-path", criu_dir]
    tcp = dumps.tcp[container.name]
    flags += [*dumps.flags, *tcp.flags]
    # CRIU's own CUDA plugin must stay out: the driver's checkpoint is ours to order.
    lines = [f"libdir {_NO_PLUGINS_DIR}", f"ghost-limit {GHOST_LIMIT_BYTES}", "link-remap"]
    lines += [*tcp.lines, *dumps.lines[container.name]]
    config_path = f"{criu_dir}/criu.conf"
    criu.write_config(config_path, lines)
    try:
        dumps.tool.call("checkpoint", *flags, container.id, env={"CRIU_CONFIG_FILE": config_path})
    except CommandError as error:
        reason = criu.decisive_line(f"{criu_dir}/dump.log") or str(error)
        kept = _keep_log(f"{criu_dir}/dump.log", dumps.pod, container)
        raise CommandError(
            f"container {container.name}: dump failed: {reason}{_disk_full(images_dir)}; see {kept}"
        ) from None


def _keep_links(dumps: Dumps, frozen: gpu.Container, images_dir: str) -> None:
    directories = volumes.places(frozen.bundle_dir, frozen.spec, dumps.chosen)
    directories["/"] = f"{frozen.bundle_dir}/rootfs"
    images_fd = confine.open_dir(images_dir)
    try:
        tasks = link_remaps.Tasks(frozen.init_pid, frozen.pids())
        link_remaps.keep(images_fd, tasks, directories, dumps.held)
    except FailedPreconditionError as error:
        raise FailedPreconditionError(f"container {frozen.name}: {error}") from error
    finally:
        os.close(images_fd)


def _add_saved_memory(dumps: Dumps, frozen: gpu.Container, images_dir: str) -> None:
    number = gpu_facts.container_pids(frozen.pids())
    own = [one._replace(pid=number[one.pid]) for one in dumps.saved if one.pid in number]
    if own:
        for name, value in staged_memory.add_to_dump(images_dir, own).items():
            dumps.digests[f"{frozen.name}/checkpoint/{name}"] = value


def _save_rw_layer(upper_dir: str, path: str) -> int:
    upper_fd = confine.open_dir(upper_dir)
    try:
        with open(path, "xb") as file:
            rootfs_diff.save(upper_fd, file.fileno())
    finally:
        os.close(upper_fd)
    return os.path.getsize(path)


def _described(dumps: Dumps, container: Container, images_dir: str) -> manifests.Container:
    """What the images say of the container, for people and for the restore's checks."""
    images_fd = confine.open_dir(images_dir)
    dump = images.read(images_fd)
    os.close(images_fd)
    gpus, cuda = dumps.gpus.get(container.name, ((), ()))
    return _manifest_container(
        container,
        processes=len(dump.tasks),
        gpus=gpus,
        cuda=cuda,
        mounts=tuple(
            manifests.Mount(key=mount.key, destination=mount.destination)
            for mount in mount_plan.dumped_mounts(dump.mounts)
            if mount.key is not None
        ),
    )


def exited(pod: Pod, container: Container, captured: dict[str, str]) -> manifests.Container:
    described = _manifest_container(container, processes=0, mounts=(), gpus=(), cuda=())
    kubelets = (f"/pods/{pod.uid}/etc-hosts", f"/pods/{pod.uid}/containers/{container.name}/")
    uncaptured = tuple(
        mount.destination
        for mount in container.mounts
        if not mount.readonly
        and mount.source not in captured.values()
        and not any(own in mount.source for own in kubelets)
    )
    return described._replace(uncaptured=uncaptured)


def _manifest_container(
    container: Container,
    *,
    processes: int,
    mounts: tuple[manifests.Mount, ...],
    gpus: tuple[manifests.Gpu, ...],
    cuda: tuple[manifests.CudaProcess, ...],
) -> manifests.Container:
    return manifests.Container(
        name=container.name,
        id=container.id,
        state=container.state,
        exit_code=container.exit_code if container.state == "exited" else None,
        image=container.image,
        image_digest=container.image_digest,
        processes=processes,
        mounts=mounts,
        gpus=gpus,
        cuda=cuda,
        uncaptured=(),
    )


def _copy_log(source: str, target: str) -> None:
    """The last whole lines of the container's log, 10 MiB at most."""
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb") as log_file, open(target, "xb") as out:
        size = os.fstat(fd).st_size
        if size > checkpoint_dir.CONTAINER_LOG_LIMIT_BYTES:
            log_file.seek(size - checkpoint_dir.CONTAINER_LOG_LIMIT_BYTES)
            log_file.readline()
        shutil.copyfileobj(log_file, out)


def _keep_log(dump_log: str, pod: Pod, container: Container) -> str:
    kept = f"{log.DIR}/{pod.namespace}/{pod.name}/{container.name}/dump.log"
    os.makedirs(os.path.dirname(kept), mode=0o700, exist_ok=True)
    if os.path.exists(dump_log):  # runc can fail before CRIU has begun
        shutil.copyfile(dump_log, kept)
    return kept


def _disk_full(directory: str) -> str:
    room = os.statvfs(directory)
    full = room.f_bavail * room.f_frsize < 1 << 20
    return f" (no space left on the filesystem of {directory})" if full else ""


def _write_metadata(directory: str, container: Container) -> None:
    config = checkpointctl.config_dump(
        container_id=container.id,
        name=container.name,
        image=container.image,
        image_digest=container.image_digest,
        created=log.rfc3339(container.created_ns / 1e9),
        now=log.rfc3339(),
    )
    status = checkpointctl.status_dump(
        created_ns=container.created_ns, started_ns=container.started_ns
    )
    for name, value in (("config.dump", config), ("status.dump", status)):
        with open(f"{directory}/{name}", "x", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
