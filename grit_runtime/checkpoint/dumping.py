"""Dumping the frozen containers of a pod: memory, rw layer, log and what describes them."""

from __future__ import annotations

import json
import os
import shutil

from grit_runtime import log, paths
from grit_runtime.dump import link_remaps, moved_memory
from grit_runtime.errors import CommandError, DumpError, FailedPreconditionError
from grit_runtime.files import checkpoint_dir, confine, layer_save
from grit_runtime.host import criu, overlay
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import checkpointctl, connections, mount_plan
from grit_runtime.model import manifest as manifests
from grit_runtime.pod import volumes
from grit_runtime.restore import checks
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.checkpoint.order import Context
    from grit_runtime.files.digest import FileDigest
    from grit_runtime.host.containerd import Container, Pod
    from grit_runtime.model.losses import Loss
    from grit_runtime.model.memory_range import MemoryFile
    from grit_runtime.model.task_facts import ProcessFacts
    from grit_runtime.nvidia import suspension
    from grit_runtime.pod.running_container import RunningContainer
    from grit_runtime.restore.checks import Case

_NO_PLUGINS_DIR = f"{paths.RUN_DIR}/no-plugins"

# CRIU keeps the content of a deleted file up to its own limit; here the disk is the limit.
_GHOST_LIMIT_BYTES = 1 << 40

# A runc that knows one of these flags turns the option off in CRIU when the flag is absent,
# whatever CRIU's configuration file says.
_LINK_REMAP = "--link-remap"
NEWER_FLAGS = (_LINK_REMAP, connections.SKIP_IN_FLIGHT)


class Dumps(NamedTuple):
    """What the dumps of all containers of one checkpoint share."""

    context: Context
    flags: frozenset[str]  # those of NEWER_FLAGS that runc has
    containers: dict[str, RunningContainer]  # by id
    chosen: dict[str, str]  # volumes to save: paths by name
    lines: dict[str, tuple[str, ...]]  # of CRIU's configuration file, by container
    losses: tuple[Loss, ...]
    facts: dict[str, tuple[ProcessFacts, ...]]  # by container
    tcp: dict[str, connections.DumpOptions]
    gpus: dict[str, suspension.Described]
    saved: list[MemoryFile]  # memory that was already taken from processes
    numbers: dict[str, dict[int, int]]  # by container: of its processes, inside by this node's
    digests: dict[str, FileDigest]  # already known digests of files in the checkpoint


def dump(dumps: Dumps, container: Container) -> Case:
    """Dump everything of one frozen container into its directory of the checkpoint.

    The dump is checked against the container's own files while these cannot change; the caller
    checks it against everything else, and closes the descriptors.
    """
    directory = f"{dumps.context.staging_dir}/{container.name}"
    images_dir = f"{directory}/checkpoint"
    criu_dir = f"{dumps.context.work_dir}/{container.name}"
    os.makedirs(images_dir)
    os.makedirs(criu_dir)
    frozen = dumps.containers[container.id]
    bundle_dir = frozen.bundle_dir
    # The shim unmounts the rootfs as soon as a container ends, so the path is read before.
    upper_dir = overlay.upper_dir(f"{bundle_dir}/rootfs")
    with dumps.context.timeline.phase("dump", container=container.name) as entry:
        _criu_dump(dumps, container, images_dir, criu_dir)
        _keep_links(dumps, frozen, images_dir)
        entry["size_bytes"] = sum(file.stat().st_size for file in os.scandir(images_dir))
        _add_saved_memory(dumps, frozen, images_dir)
    with dumps.context.timeline.phase("rw layer", container=container.name) as entry:
        entry["size_bytes"] = _save_rw_layer(upper_dir, f"{directory}/rootfs-diff.tar")
    for name in ("dump.log", "stats-dump"):
        shutil.copyfile(f"{criu_dir}/{name}", f"{directory}/{name}")
    _copy_log(container.log_path, f"{directory}/container.log")
    shutil.copyfile(f"{bundle_dir}/config.json", f"{directory}/spec.dump")
    _write_metadata(directory, container)
    with (
        dumps.context.timeline.phase("check", container=container.name),
        checks.of_source(container.name),
    ):
        held = _described(dumps, container)
        checks.check_files(held)
    return held


def _criu_dump(dumps: Dumps, container: Container, images_dir: str, criu_dir: str) -> None:
    os.makedirs(_NO_PLUGINS_DIR, mode=0o700, exist_ok=True)
    flags = ["--leave-running", "--file-locks", "--image-path", images_dir, "--work-path", criu_dir]
    tcp = dumps.tcp[container.name]
    optional = (_LINK_REMAP, *tcp.flags)
    flags += [flag for flag in optional if flag not in NEWER_FLAGS or flag in dumps.flags]
    # CRIU must not load its CUDA plugin: grit orders the driver's checkpoint itself.
    lines = [f"libdir {_NO_PLUGINS_DIR}", f"ghost-limit {_GHOST_LIMIT_BYTES}", "link-remap"]
    lines += [*tcp.lines, *dumps.lines[container.name]]
    config_path = f"{criu_dir}/criu.conf"
    criu.write_config(config_path, lines)
    try:
        dumps.context.tool.call(
            "checkpoint", *flags, container.id, env={"CRIU_CONFIG_FILE": config_path}
        )
    except CommandError as error:
        reason = criu.decisive_line(f"{criu_dir}/dump.log") or str(error)
        kept = _keep_log(f"{criu_dir}/dump.log", dumps.context.order.pod, container)
        raise DumpError(
            f"container {container.name}: dump failed: {reason}{_disk_full(images_dir)}; see {kept}"
        ) from None


def _keep_links(dumps: Dumps, frozen: RunningContainer, images_dir: str) -> None:
    directories = volumes.places(frozen.bundle_dir, frozen.spec, dumps.chosen)
    directories["/"] = f"{frozen.bundle_dir}/rootfs"
    try:
        tasks = link_remaps.Tasks(frozen.init_pid, frozen.pids())
        with closing_fd(confine.open_dir(images_dir)) as images_fd:
            link_remaps.keep(images_fd, tasks, directories, dumps.context.journal)
    except FailedPreconditionError as error:
        raise FailedPreconditionError(f"container {frozen.name}: {error}") from error


def _add_saved_memory(dumps: Dumps, frozen: RunningContainer, images_dir: str) -> None:
    number = dumps.numbers[frozen.name]
    own = [file._replace(pid=number[file.pid]) for file in dumps.saved if file.pid in number]
    if own:
        for name, value in moved_memory.add_to_dump(images_dir, own).items():
            dumps.digests[f"{frozen.name}/checkpoint/{name}"] = value


def _save_rw_layer(upper_dir: str, path: str) -> int:
    with closing_fd(confine.open_dir(upper_dir)) as upper_fd, open(path, "xb") as file:
        layer_save.save(upper_fd, file.fileno())
    return os.path.getsize(path)


def _described(dumps: Dumps, container: Container) -> Case:
    """What the images say about the container, for people and for the restore's checks."""
    gpus, cuda = dumps.gpus.get(container.name, ((), ()))
    frozen = dumps.containers[container.id]
    held = checks.case(
        dumps.context.staging_dir,
        confine.open_dir(dumps.context.staging_dir),
        _manifest_container(container)._replace(gpus=gpus, cuda=cuda),
        [container.name for container in dumps.containers.values()],
        frozen.bundle_dir,
        frozen.spec,
    )
    mounts = tuple(
        manifests.Mount(key=mount.key, destination=mount.destination)
        for mount in mount_plan.dumped_mounts(held.dump.mounts)
        if mount.key is not None
    )
    described = held.container._replace(
        processes=len(held.dump.tasks),
        mounts=mounts,
        facts=dumps.facts[container.name],
        memory=moved_memory.described(held.images_fd, held.dump),
    )
    return held._replace(container=described)


def exited(pod: Pod, container: Container, captured: dict[str, str]) -> manifests.Container:
    kubelets = (f"/pods/{pod.uid}/etc-hosts", f"/pods/{pod.uid}/containers/{container.name}/")
    uncaptured = tuple(
        mount.destination
        for mount in container.mounts
        if not mount.readonly
        and mount.source not in captured.values()
        and not any(own in mount.source for own in kubelets)
    )
    return _manifest_container(container)._replace(uncaptured=uncaptured)


def _manifest_container(container: Container) -> manifests.Container:
    return manifests.Container(
        name=container.name,
        id=container.id,
        state=container.state,
        exit_code=container.exit_code if container.state == "exited" else None,
        image=container.image,
        image_digest=container.image_digest,
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
    kept = f"{paths.LOG_DIR}/{pod.namespace}/{pod.name}/{container.name}/dump.log"
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
