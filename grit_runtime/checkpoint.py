"""Taking a checkpoint of a pod: freeze, dump, copy, seal, and the undoing of each.

Every step with an effect is recorded in the pod's journal before it is taken. Whoever finds the
journal without a living writer (the supervisor, a later grit command) undoes it with `undo`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from contextlib import contextmanager, suppress
from typing import Literal, NamedTuple

from grit_runtime import gpu, log, preflight, volumes
from grit_runtime.errors import (
    AlreadyExistsError,
    CommandError,
    FailedPreconditionError,
    GritError,
    NotFoundError,
    SourceLostError,
    one_line,
)
from grit_runtime.host import (
    checkpoint_dir,
    config_json,
    confine,
    criu,
    huge_pages,
    images,
    journal,
    link_remaps,
    linux,
    network,
    overlay,
    process,
    records,
    rootfs_diff,
    runc,
    sockets,
)
from grit_runtime.host import node as this_node
from grit_runtime.host.runc import Runc
from grit_runtime.model import checkpointctl, connections, lifecycle, mount_plan
from grit_runtime.model import manifest as manifests
from grit_runtime.model.annotations import CAPTURE, capture, checkpoint_name, tcp
from grit_runtime.model.lifecycle import Outcome
from grit_runtime.model.manifest import Manifest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from grit_runtime.config import Config
    from grit_runtime.host.containerd import Container, Pod
    from grit_runtime.host.journal import Journal
    from grit_runtime.host.process import Child

JOURNAL = "checkpoint.journal"

After = Literal["running", "frozen", "stopped"]

_NO_PLUGINS_DIR = "/run/grit/no-plugins"

# Of a deleted file CRIU keeps what is in it, up to a limit of its own; ours is the disk.
_GHOST_LIMIT_BYTES = 1 << 40

# A runc that has the flag tells CRIU no without it, whatever its configuration says.
_LINK_REMAP = "--link-remap"

# How long an interrupted CRIU may take to let go of its tasks by itself. Killed in the middle it
# would leave its parasite code in them.
_CRIU_LETS_GO_S = 30.0


class Order(NamedTuple):
    """What is asked: the pod with the containers meant, the checkpoint's name, what comes after."""

    pod: Pod
    name: str
    after: After
    replace: bool
    pod_is_going: bool
    capture: frozenset[str]  # volumes, besides those that the pod's annotation names
    containerd_version: str


class Sealed(NamedTuple):
    path: str
    manifest: Manifest


class _Dumps(NamedTuple):
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
    driver_version: str


def checkpoint(order: Order, config: Config) -> Sealed:
    """Take the checkpoint; on any failure the source runs as before and nothing is left.

    Blocks for as long as the dump takes. GritError says what went wrong; either way is recorded.
    """
    try:
        sealed = _take_or_undo(order, config)
    except BaseException as error:
        outcome = lifecycle.LOST if isinstance(error, SourceLostError) else lifecycle.FAILED
        reason = one_line(error) if isinstance(error, GritError | OSError) else "interrupted"
        records.append(_outcome(order, config, outcome, reason))
        raise
    records.append(_outcome(order, config, lifecycle.SEALED, ""))
    return sealed


def _take_or_undo(order: Order, config: Config) -> Sealed:
    final_dir = _preflight(order, config)
    held = _begin(order.pod)
    try:
        sealed = _take(order, config, final_dir, held)
    except BaseException:
        undo(held)
        raise
    if order.after == "frozen":
        held.close()
    else:
        _end(held)
    return sealed


def suspend_gpus(pod: Pod, config: Config) -> int:
    """Free the GPUs of a running pod and let it be; the device memory freed, in bytes.

    The way back is `grit gpu restore`. On any failure the pod runs as before.
    """
    token = process.new_token()
    tool = Runc("runc", ("--root", config.runc_root), token)
    driver = gpu.open_driver(token)
    containers = [_gpu_container(tool, container) for container in _running(pod)]
    found = gpu.survey(driver, containers) if driver else None
    if found is None or not found.running_pids:
        raise NotFoundError(f"pod {pod.namespace}/{pod.name}: no running CUDA process")
    gpu.refuse_unrestorable(found, containers)
    held = _begin(pod)
    try:
        held.record("begin", token=token, runc_root=config.runc_root)
        held.record("gpu", pids=found.running_pids)
        with huge_pages.enabled(wanted=config.huge_pages):
            gpu.suspend(found, log.Timeline())
    except BaseException:
        undo(held)
        raise
    _end(held)
    return sum(process.size_bytes for process in found.all)


def undo(held: Journal) -> None:
    """Take back what the journal records, newest first; a stop that had begun is completed."""
    steps = held.steps()
    if steps:
        begin = steps[0]
        tool = Runc("runc", ("--root", begin["runc_root"]), begin["token"])
        process.wait_gone(tool.token, deadline_s=_CRIU_LETS_GO_S)
        stopping = any(step["step"] == "stop" for step in steps)
        for step in reversed(steps):
            match step["step"]:
                case "freeze" if stopping:
                    runc.stop(tool, step["container"])
                case "freeze":
                    runc.resume(tool, step["container"])
                case "thaw" if not stopping:
                    runc.pause(tool, step["container"])
                case "gpu" if not stopping:
                    gpu.revive_pids(tool.token, step["pids"])
                case "silence" if not stopping:
                    network.let_speak(step["path"])
                case link_remaps.STEP:
                    link_remaps.drop([step])
                case "directory":
                    shutil.rmtree(step["path"], ignore_errors=True)
                case _:
                    pass  # nothing to take back
    _end(held)


def recover() -> list[str]:
    """Undo every checkpoint whose engine has died; the journals that were undone."""
    huge_pages.recover()
    return [
        path for path in journal.beneath(journal.PODS_DIR, f"*/{JOURNAL}") if _recover_one(path)
    ]


def supervise(path: str) -> None:
    """Wait for the engine that writes the journal at *path*, and undo it if the engine has died."""
    _recover_one(path, wait=True)


def resume(pod: Pod) -> None:
    """Let a pod that a checkpoint left frozen run on; FailedPreconditionError if none did."""
    held = journal.adopt(_journal_path(pod))
    if held is None:
        raise FailedPreconditionError(
            f"pod {pod.namespace}/{pod.name} is not held frozen by a checkpoint"
        )
    undo(held)


def is_held(path: str) -> bool:
    """Whether the journal at *path* is of a checkpoint that has left its pod frozen."""
    try:
        return any(step["step"] == "frozen" for step in journal.read(path))
    except FileNotFoundError:  # it has just ended
        return False


def forget_pod(pod_dir: str) -> None:
    """The sandbox is being deleted, and what a checkpoint had frozen in it goes too."""
    held = journal.adopt(f"{pod_dir}/{JOURNAL}")
    if held is not None:
        _end(held)


def _preflight(order: Order, config: Config) -> str:
    """The directory that the checkpoint will get; refuses what could not end well."""
    pod = order.pod
    name = f"pod {pod.namespace}/{pod.name}"
    if order.after == "stopped" and pod.is_kubelets and not order.pod_is_going:
        raise FailedPreconditionError(
            f"{name}: kubelet restarts what stops in it; delete the pod and say --pod-is-going, "
            "or use --after frozen"
        )
    for container in pod.containers:
        if container.state not in ("running", "exited"):
            raise FailedPreconditionError(
                f"{name}: container {container.name} is {container.state}, expected running"
            )
    if not _running(pod):
        raise FailedPreconditionError(f"{name}: no container is running")
    if config.signing_key:
        from grit_runtime.host import signature  # noqa: PLC0415

        signature.sign(b"", config.signing_key)  # the pod does not stop for a key that is not one
    final_dir = f"{config.checkpoint_root}/{pod.namespace}/{checkpoint_name(order.name)}"
    if os.path.lexists(final_dir) and not order.replace:
        raise AlreadyExistsError(f"checkpoint {final_dir} exists; choose another name or --replace")
    return final_dir


def _begin(pod: Pod) -> Journal:
    """The pod's journal, with the supervisor watching it."""
    path = _journal_path(pod)
    left = journal.adopt(path)
    if left is not None:
        if is_held(left.path):
            left.close()
            raise FailedPreconditionError(
                f"pod {pod.namespace}/{pod.name} is held frozen by a checkpoint; "
                "run grit resume first"
            )
        undo(left)
    held = journal.begin(path)
    null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0)
    os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", "grit_runtime.cli.main", "recover", "--wait", path],
        os.environ,
        file_actions=[null, (os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)],
        setsid=True,
    )
    return held


def _take(order: Order, config: Config, final_dir: str, held: Journal) -> Sealed:
    timeline = log.Timeline()
    token = process.new_token()
    tool = Runc("runc", ("--root", config.runc_root), token)
    running = _running(order.pod)
    staging_dir = f"{os.path.dirname(final_dir)}/.{order.name}.{token}"
    work_dir = f"{journal.PODS_DIR}/{order.pod.sandbox_id}/dump"

    outcome = _outcome(order, config, lifecycle.FAILED, "the engine was killed")
    held.record("begin", token=token, runc_root=config.runc_root, outcome=outcome._asdict())
    for path in (staging_dir, work_dir):
        held.record("directory", path=path)
        os.makedirs(path, mode=0o700)

    driver = gpu.open_driver(token)
    containers = [_gpu_container(tool, container) for container in running]
    versions = (criu.ask_version(token), runc.ask_version(tool))
    lines = preflight.refuse_undumpable(containers)
    asked_flags = runc.ask_flags(tool, "checkpoint")
    tcp = _tcp_options(containers)
    # These refuse before anything is touched; the volumes are chosen again below.
    _check_room(staging_dir, containers, _choose_volumes(order, containers))
    thawed = _thaw_for_driver(tool, containers, held)
    found = gpu.survey(driver, containers) if driver else None
    if found and found.all:
        gpu.refuse_unrestorable(found, containers)
    begin = time.monotonic()
    if found and found.all:
        found, frozen = _suspend_and_freeze(config, tool, found, containers, thawed, held, timeline)
    else:
        frozen = _freeze(tool, containers, thawed, held, timeline)
    _silence(order, containers, tcp, held)
    gpus = {c.name: gpu.describe(found, c) for c in containers} if found else {}
    chosen = _choose_volumes(order, containers)
    dumps = _Dumps(
        tool=tool,
        flags=[_LINK_REMAP] if runc.knows(asked_flags, _LINK_REMAP) else [],
        held=held,
        containers={c.id: c for c in containers},
        chosen=chosen,
        versions=versions,
        pod=order.pod,
        staging_dir=staging_dir,
        work_dir=work_dir,
        timeline=timeline,
        lines=lines,
        tcp=tcp,
        gpus=gpus,
        driver_version=found.version if found else "",
    )
    dumped = [_dump(dumps, container) for container in running]
    with timeline.phase("volumes"):
        captured = volumes.save(chosen, staging_dir)
    link_remaps.drop(held.steps())
    if order.after == "running":
        _go_on(tool, found, frozen, timeline)
        timeline.add("paused", seconds=time.monotonic() - begin)
        for container_id in thawed:
            runc.pause(tool, container_id)
    if driver:
        driver.close()

    exited = [_exited(order.pod, c, chosen) for c in order.pod.containers if c.state == "exited"]
    # A source that goes on can be checkpointed again; one that ends has nothing but this.
    sync = order.after == "stopped"
    with _written_back(staging_dir, timeline, wanted=sync):
        manifest = _manifest(order, captured, [*dumped, *exited], dumps)
    with timeline.phase("seal"):
        _sign(manifest, staging_dir, config.signing_key)
        _seal(manifest, staging_dir, final_dir, sync=sync)
    shutil.rmtree(work_dir)
    _leave_source(order, tool, held, timeline)
    return Sealed(final_dir, manifest)


def _leave_source(order: Order, tool: Runc, held: Journal, timeline: log.Timeline) -> None:
    """The checkpoint is sealed: hold the source frozen or stop it, if that was asked."""
    if order.after == "frozen":
        held.record("frozen")
    if order.after == "stopped":
        held.record("stop")
        with timeline.phase("stop"):
            for container in _running(order.pod):
                runc.stop(tool, container.id)


def _suspend_and_freeze(
    config: Config,
    tool: Runc,
    found: gpu.Survey,
    containers: list[gpu.Container],
    thawed: list[str],
    held: Journal,
    timeline: log.Timeline,
) -> tuple[gpu.Survey, list[str]]:
    """Take the GPUs from the pod, then freeze it; once more if a CUDA process came in between."""
    left: list[str] = []
    for _ in range(2):
        held.record("gpu", pids=found.running_pids)
        with huge_pages.enabled(wanted=config.huge_pages):
            gpu.suspend(found, timeline)
        frozen = _freeze(tool, containers, thawed, held, timeline)
        left = gpu.not_suspended(containers)
        if not left:
            return found, frozen
        _thaw(tool, frozen)
        gpu.revive(found.driver, found.running_pids)
        found = gpu.survey(found.driver, containers)
    raise CommandError(f"the pod keeps taking GPUs while it is suspended: {left[0]}")


def _gpu_container(tool: Runc, container: Container) -> gpu.Container:
    state = runc.state(tool, container.id)
    spec = config_json.read(state.bundle_dir)
    paused = state.status == "paused"
    return gpu.Container(container.name, container.id, state.pid, paused, state.bundle_dir, spec)


def _tcp_options(containers: list[gpu.Container]) -> dict[str, connections.DumpOptions]:
    """How each container's connections are dumped; refuses those that nobody has decided on."""
    asked = {c.name: tcp(c.spec.get("annotations", {})) for c in containers}
    found = {c.name: sockets.connections(c.pids()) for c in containers}
    outside = set(connections.outside([end for ends in found.values() for end in ends]))
    undecided = [
        (name, end)
        for name, ends in found.items()
        if asked[name] == "refuse"
        for end in ends
        if end in outside
    ]
    reason = connections.refusal(undecided)
    if reason:
        raise FailedPreconditionError(reason)
    return {
        name: connections.dump_options(asked[name], ends, inside=not outside & set(ends))
        for name, ends in found.items()
    }


def _silence(
    order: Order,
    containers: list[gpu.Container],
    tcp: dict[str, connections.DumpOptions],
    held: Journal,
) -> None:
    """Keep a source that is to end from saying so to its peers, who go on with the new pod."""
    if order.after == "running" or not any(options.has_peers for options in tcp.values()):
        return
    namespaces = containers[0].spec["linux"]["namespaces"]
    for path in [ns["path"] for ns in namespaces if ns["type"] == "network" and ns.get("path")]:
        held.record("silence", path=path)
        network.silence(path)


def _choose_volumes(order: Order, containers: list[gpu.Container]) -> dict[str, str]:
    """The volumes that go along; refuses to leave one behind that somebody needs."""
    asked = order.capture.union(
        *(capture(c.spec.get("annotations", {}).get(CAPTURE, "")) for c in containers)
    )
    written_before = [
        mount.source
        for container in order.pod.containers
        if container.state == "exited"
        for mount in container.mounts
        if not mount.readonly
    ]
    frozen = [volumes.Frozen(c.name, c.bundle_dir, c.spec, c.pids()) for c in containers]
    return volumes.choose(frozen, asked, written_before)


def _check_room(staging_dir: str, containers: list[gpu.Container], chosen: dict[str, str]) -> None:
    """Refuse what surely fills the disk: rw layers and volumes alone, and memory comes on top."""
    copied = [overlay.upper_dir(f"{c.bundle_dir}/rootfs") for c in containers]
    needed_bytes = 0
    for path in (*copied, *chosen.values()):
        directory_fd = confine.open_dir(path)
        needed_bytes += rootfs_diff.used_bytes(directory_fd)
        os.close(directory_fd)
    staging_fd = confine.open_dir(staging_dir)
    try:
        rootfs_diff.check_room(needed_bytes, staging_fd)
    finally:
        os.close(staging_fd)


def _thaw_for_driver(tool: Runc, containers: list[gpu.Container], held: Journal) -> list[str]:
    """Let CUDA containers run that somebody else has paused; they are paused again at the end.

    containerd's clients pause a task before its checkpoint, but the driver needs its threads.
    """
    paused = [
        container.id for container in containers if container.paused and container.has_users()
    ]
    for container_id in paused:
        held.record("thaw", container=container_id)
        runc.resume(tool, container_id)
    return paused


def _freeze(
    tool: Runc,
    containers: list[gpu.Container],
    thawed: list[str],
    held: Journal,
    timeline: log.Timeline,
) -> list[str]:
    """Freeze the pod; the containers that were not frozen before, by somebody else."""
    running = [c.id for c in containers if not c.paused or c.id in thawed]
    with timeline.phase("freeze"):
        for container_id in running:
            held.record("freeze", container=container_id)
            runc.pause(tool, container_id)
    return running


def _go_on(tool: Runc, found: gpu.Survey | None, frozen: list[str], timeline: log.Timeline) -> None:
    with timeline.phase("thaw"):
        _thaw(tool, frozen)
    if found and found.all:
        with timeline.phase("gpu restore"):
            gpu.revive(found.driver, found.running_pids)


def _thaw(tool: Runc, frozen: list[str]) -> None:
    for container_id in frozen:
        runc.resume(tool, container_id)


def _dump(dumps: _Dumps, container: Container) -> manifests.Container:
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
    with dumps.timeline.phase("rw layer", container=container.name) as entry:
        entry["size_bytes"] = _save_rw_layer(upper_dir, f"{directory}/rootfs-diff.tar")
    for name in ("dump.log", "stats-dump"):
        shutil.copyfile(f"{criu_dir}/{name}", f"{directory}/{name}")
    _copy_log(container.log_path, f"{directory}/container.log")
    shutil.copyfile(f"{bundle_dir}/config.json", f"{directory}/spec.dump")
    _write_metadata(directory, container)
    return _described(dumps, container, images_dir)


def _criu_dump(dumps: _Dumps, container: Container, images_dir: str, criu_dir: str) -> None:
    os.makedirs(_NO_PLUGINS_DIR, mode=0o700, exist_ok=True)
    flags = ["--leave-running", "--file-locks", "--image-path", images_dir, "--work-path", criu_dir]
    tcp = dumps.tcp[container.name]
    flags += [*dumps.flags, *tcp.flags]
    # CRIU's own CUDA plugin must stay out: the driver's checkpoint is ours to order.
    lines = [f"libdir {_NO_PLUGINS_DIR}", f"ghost-limit {_GHOST_LIMIT_BYTES}", "link-remap"]
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


def _keep_links(dumps: _Dumps, frozen: gpu.Container, images_dir: str) -> None:
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


def _save_rw_layer(upper_dir: str, path: str) -> int:
    upper_fd = confine.open_dir(upper_dir)
    try:
        with open(path, "xb") as file:
            rootfs_diff.save(upper_fd, file.fileno())
    finally:
        os.close(upper_fd)
    return os.path.getsize(path)


def _manifest(
    order: Order,
    captured: tuple[str, ...],
    containers: list[manifests.Container],
    dumps: _Dumps,
) -> Manifest:
    """Digest what lies in the staging directory and describe it."""
    with dumps.timeline.phase("digest") as entry:
        files = checkpoint_dir.contents(dumps.staging_dir)
        entry["size_bytes"] = sum(file.size_bytes for file in files)
    pod = order.pod
    criu_asked, runc_asked = dumps.versions
    return Manifest(
        version=manifests.VERSION,
        name=order.name,
        created=log.rfc3339(),
        pod=manifests.Pod(pod.namespace, pod.name, pod.uid, pod.sandbox_id),
        captured=captured,
        containers=tuple(containers),
        files=files,
        node=this_node.facts(
            criu.version(criu_asked),
            runc=runc.version(runc_asked),
            containerd=order.containerd_version,
            driver=dumps.driver_version,
        ),
        options=manifests.Options(file_locks=True, ghost_limit_bytes=_GHOST_LIMIT_BYTES),
        timeline=manifests.phases(dumps.timeline.phases),
    )


@contextmanager
def _written_back(directory: str, timeline: log.Timeline, *, wanted: bool) -> Iterator[None]:
    """Write the directory's filesystem to its medium, if *wanted*, while the block does its work.

    Its failure must be heard: the kernel tells of lost data only those who waited for it.
    """
    if not wanted:
        yield
        return
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(linux.sync_filesystem, directory)
        yield
        with timeline.phase("sync"):
            done.result()


def _sign(manifest: Manifest, staging_dir: str, signing_key: str) -> None:
    if signing_key:
        from grit_runtime.host import signature  # noqa: PLC0415  few configure it

        with open(f"{staging_dir}/{manifests.SIGNATURE_NAME}", "xb") as file:
            file.write(signature.sign(manifests.dump(manifest), signing_key))


def _seal(manifest: Manifest, staging_dir: str, final_dir: str, *, sync: bool) -> None:
    """Write the manifest last and give the directory its name, with *sync* on the medium."""
    with open(f"{staging_dir}/{manifests.FILE_NAME}", "xb") as file:
        file.write(manifests.dump(manifest))
    if sync:
        linux.sync_filesystem(staging_dir)
    if os.path.lexists(final_dir):
        linux.exchange(staging_dir, final_dir)
        shutil.rmtree(staging_dir)
    else:
        os.rename(staging_dir, final_dir)
    if sync:
        linux.sync_filesystem(os.path.dirname(final_dir))


def _described(dumps: _Dumps, container: Container, images_dir: str) -> manifests.Container:
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


def _exited(pod: Pod, container: Container, captured: dict[str, str]) -> manifests.Container:
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


def _recover_one(path: str, *, wait: bool = False) -> bool:
    held = journal.adopt(path, wait=wait)
    if held is None:
        return False
    if is_held(held.path):
        held.close()
        return False
    steps = held.steps()
    undo(held)
    for begin in steps[:1]:
        if "outcome" in begin:
            records.append(Outcome(**begin["outcome"])._replace(time=log.rfc3339()))
    return True


def _outcome(order: Order, config: Config, outcome: str, reason: str) -> Outcome:
    pod = order.pod
    return Outcome(
        time=log.rfc3339(),
        outcome=outcome,
        reason=reason,
        namespace=pod.namespace,
        pod=pod.name,
        pod_uid=pod.uid,
        sandbox_id=pod.sandbox_id,
        container="",
        container_id="",
        checkpoint=f"{config.checkpoint_root}/{pod.namespace}/{order.name}",
    )


def _journal_path(pod: Pod) -> str:
    return f"{journal.PODS_DIR}/{pod.sandbox_id}/{JOURNAL}"


def _end(held: Journal) -> None:
    held.end()
    with suppress(OSError):  # the pod may have other state
        os.rmdir(os.path.dirname(held.path))


def _running(pod: Pod) -> list[Container]:
    return [container for container in pod.containers if container.state == "running"]


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
