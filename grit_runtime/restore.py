"""Restoring a container from a checkpoint, in the place of starting it.

Called at `create`, with the bundle that containerd made for the new pod. Everything comes from two
sides: the live pod's config.json, which is trusted, and the checkpoint, which is not.
"""

from __future__ import annotations

import os
import signal
import stat
import time
from contextlib import suppress
from typing import Any, NamedTuple

from grit_runtime import attempts, log
from grit_runtime.errors import (
    CommandError,
    FailedPreconditionError,
    GritError,
    ImageError,
    SourceLostError,
    one_line,
)
from grit_runtime.host import (
    bundle,
    cgroup,
    checkpoint_dir,
    config_json,
    confine,
    criu,
    devices,
    huge_pages,
    images,
    journal,
    links,
    loopback,
    namespaces,
    network,
    open_files,
    overlay,
    pod_files,
    process,
    records,
    rootfs_diff,
    runc,
    runc_dump,
)
from grit_runtime.host import node as this_node
from grit_runtime.model import (
    checkpointctl,
    compatibility,
    connections,
    lifecycle,
    mount_plan,
    pod_check,
    privilege,
)
from grit_runtime.model.lifecycle import Outcome
from grit_runtime.proto import criu_pb2
from grit_runtime.wire import criu_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime import gpu
    from grit_runtime.host.checkpoint_dir import Sealed
    from grit_runtime.host.gpu import Driver
    from grit_runtime.host.journal import Journal
    from grit_runtime.host.process import Child
    from grit_runtime.host.process_memory import Saved
    from grit_runtime.host.runc import Runc
    from grit_runtime.model.annotations import Identity, RestoreOrder
    from grit_runtime.model.manifest import Container, File, Manifest
    from grit_runtime.model.privilege import Dump, Live

_POD_LOGS_DIR = "/var/log/pods"
_COPIES_DIR = "/var/lib/grit/copies"
_COPY_LIMIT_ENTRIES = 100_000
_TASK_ALIVE = 1  # compel/include/uapi/task-state.h


class Gpus(NamedTuple):
    """What a container's GPU memory comes back from, and where to."""

    placement: gpu.Placement
    saved: dict[File, Saved]  # what we bring back ourselves; pids are the dump's
    left_out: dict[str, bytes]  # the images with which CRIU does not


class Request(NamedTuple):
    """One `create` call, as it is to become a `restore`."""

    container_id: str
    bundle_dir: str
    spec: dict[str, Any]  # the bundle's config.json
    runc: Runc
    flags: tuple[str, ...]  # of `create`, those that `restore` knows too
    order: RestoreOrder
    checkpoint_root: str
    trusted_keys: str
    huge_pages: bool

    @property
    def checkpoint_path(self) -> str:
        return "/".join((self.checkpoint_root, *self.order.path))

    @property
    def pod_dir(self) -> str:
        identity = self.order.identity
        sandbox_id = identity.sandbox_id if identity else self.container_id
        return f"{journal.PODS_DIR}/{sandbox_id}"

    @property
    def attempt_dir(self) -> str:
        return f"{self.pod_dir}/{self.container_id}"

    @property
    def copy_dir(self) -> str:
        return f"{_COPIES_DIR}/{self.runc.token}"

    @property
    def log_dir(self) -> str:
        identity = self.order.identity
        if identity is None:
            return f"{log.DIR}/{self.container_id}"
        return f"{log.DIR}/{identity.namespace}/{identity.pod}/{identity.container}"


def restore(request: Request) -> bool:
    """Restore the container; False if runc is to start it, from its image or only to exit.

    Blocks until the container runs. When it raises, nothing of the attempt is left: no process,
    mount or file. Which of them it was is logged and recorded, with the reason.
    """
    attempts.sweep(request.pod_dir, starting=_name(request))
    attempt = journal.begin(f"{request.attempt_dir}/{attempts.JOURNAL}")
    attempt.record("begin", outcome=_outcome(request, lifecycle.FAILED, "")._asdict())
    try:
        instead = _attempt(request, attempt)
    except (GritError, OSError) as error:
        _start_cold_or_raise(request, attempt, error)
        return False
    except BaseException as error:
        attempts.undo(attempt)
        attempts.tell(_outcome(request, lifecycle.FAILED, f"{type(error).__name__}: {error}"))
        raise
    if instead is None:
        attempt.close()
        return True
    attempts.undo(attempt)
    if instead.outcome == lifecycle.SKIPPED:
        bundle.exit_at_once(request.bundle_dir, request.spec)
    attempts.tell(instead)
    return False


def _start_cold_or_raise(request: Request, attempt: Journal, error: GritError | OSError) -> None:
    """The attempt has failed: undo it, and raise unless the container may start cold instead."""
    reason = one_line(error)
    with journal.locked(request.pod_dir):
        beside = _restored_beside(request)
        steps = {step["step"]: step for step in attempt.steps()}
        loopback.let_go(request.pod_dir)
        attempts.undo(attempt)
        if request.order.cold_on_failure and beside is None:
            if "rw layer" in steps:
                _clear(request, steps)
            attempts.tell(_outcome(request, lifecycle.COLD, reason, binds=True))
            return
    if request.order.cold_on_failure:
        reason += f"; not started cold, because container {beside} of the pod was restored"
        error = FailedPreconditionError(reason)
    attempts.tell(_outcome(request, lifecycle.FAILED, reason))
    raise error


def _restored_beside(request: Request) -> str | None:
    """A container of this sandbox that is restored, whether or not it has heard of its start."""
    for name in _restored(request.pod_dir):
        return name
    identity = request.order.identity
    if identity is None:
        return None
    return lifecycle.restored_container(_past(request), identity.sandbox_id)


def _restored(pod_dir: str) -> set[str]:
    """The containers of a sandbox that are restored, whether or not their start was heard of."""
    names = set()
    for path in journal.beneath(pod_dir, f"*/{attempts.JOURNAL}"):
        steps = {step["step"]: step for step in journal.read(path)}
        if "restored" in steps:
            names.add(str(steps["begin"]["outcome"]["container"]))
    return names


def _clear(request: Request, steps: dict[str, dict[str, Any]]) -> None:
    """Make the bundle what containerd made it, after the attempt was undone."""
    overlay.empty(bundle.rootfs(request.bundle_dir, request.spec))
    config_json.write(request.bundle_dir, request.spec)
    if "log" in steps:
        os.truncate(steps["log"]["path"], 0)


def _attempt(request: Request, attempt: Journal) -> Outcome | None:
    """None if the container is restored; otherwise what is to become of it instead."""
    begin = time.monotonic()
    timeline = log.Timeline()
    past_reason = _past_reason(request)
    if past_reason:
        return _outcome(request, lifecycle.COLD, past_reason)
    checkpoint_fd, sealed = _open_checkpoint(request, attempt)
    if request.trusted_keys:
        checkpoint_dir.check_signature(checkpoint_fd, request.checkpoint_path, request.trusted_keys)
    container = _container(sealed.manifest, request)
    if container is None:
        reason = "the checkpoint does not list this container"
        return _outcome(request, lifecycle.COLD, reason)
    if container.state != "running":
        return _ended(request, container)
    _require_images(request, sealed, container)

    criu_version = criu.ask_version(request.runc.token)  # answers while digests are compared
    driver = _gpu_driver(request, container)
    with timeline.phase("verify", size_bytes=sum(f.size_bytes for f in sealed.manifest.files)):
        _verify(checkpoint_fd, sealed, request, container)
    with timeline.phase("check"):
        _compare(sealed, request, criu_version)
        images_fd = confine.descend(checkpoint_fd, (container.name, "checkpoint"))
        live = bundle.live(request.bundle_dir, request.spec)
        dump, fitted = pod_files.fitted(images_fd, images.read(images_fd), live)
        plan = _plan(request, dump, live)
        privilege.check(dump, live)
        _check_room(request, images_fd, dump)
        hidden = _others_sysv(request, checkpoint_fd, sealed.manifest, container, dump)
        adapted = fitted | runc_dump.adapted(images_fd, dump, request.spec, plan)
        gpus = _plan_gpus(request, sealed.manifest, container, driver, checkpoint_fd, dump)
    with timeline.phase("rw layer"):
        _apply_rw_layer(request, attempt, checkpoint_fd, container.name)
        links.check(bundle.rootfs(request.bundle_dir, request.spec), dump, live)
    _put_back_volumes(request, attempt, checkpoint_fd, sealed.manifest, timeline)
    open_files.check(
        bundle.rootfs(request.bundle_dir, request.spec), dump, live, image=container.image
    )
    with timeline.phase("prepare"):
        _configure_criu(
            request,
            [
                *_place_sockets(request, attempt, dump, live),
                *_own_cgroup(request, dump, live),
                # No task may run before it has all of its memory.
                *(["leave-stopped"] if gpus and gpus.saved else []),
            ],
        )
        rewritten = adapted | _rewritten(request.spec, images_fd, dump) | dict.fromkeys(hidden)
        rewritten |= gpus.left_out if gpus else {}
        images_dir = _mount_images(request, attempt, images_fd, rewritten)
    _carry_log(request.order.identity, checkpoint_fd, container.name, attempt)
    with huge_pages.enabled(wanted=gpus is not None and request.huge_pages):
        with timeline.phase("restore"):
            _runc_restore(request, attempt, sealed.manifest, images_dir)
        if gpus:
            _bring_back_gpus(request, attempt, container, dump, gpus, timeline)
        if not sealed.is_verifiable:
            _revive_gpus(request, attempt)
    overlay.unmount(images_dir)
    attempts.remove(request.copy_dir)
    timeline.add("all", seconds=time.monotonic() - begin)
    _commit(request, attempt, sealed, timeline)
    return None


def _ended(request: Request, container: Container) -> Outcome:
    """What becomes of a container that had ended before the checkpoint: it runs again, or not."""
    if container.exit_code != 0 or not request.order.skip_completed:
        reason = f"it had exited {container.exit_code} before the checkpoint, and runs again"
        return _outcome(request, lifecycle.COLD, reason)
    if container.uncaptured:
        raise FailedPreconditionError(
            f"container {container.name} cannot be skipped: the checkpoint does not hold its "
            f"writable volume {container.uncaptured[0]}; without grit.dev/completed it runs again"
        )
    return _outcome(request, lifecycle.SKIPPED, "")


def _require_images(request: Request, sealed: Sealed, container: Container) -> None:
    images_path = f"{container.name}/checkpoint/"
    if not any(file.path.startswith(images_path) for file in sealed.manifest.files):
        raise ImageError(
            f"checkpoint {request.checkpoint_path} lists container {container.name} as running "
            "but holds no images of it; take it again"
        )


def _past_reason(request: Request) -> str | None:
    """Why what became of the pod before has its container start cold."""
    past = _past(request)
    if not past:
        return None
    try:
        dir_fd = checkpoint_dir.open_named(request.checkpoint_root, request.order.path)
        sha256 = checkpoint_dir.read(dir_fd, request.checkpoint_path).sha256
    except (GritError, OSError):
        sha256 = ""  # a checkpoint may be removed once it is restored
    now = _outcome(request, lifecycle.RESTORED, "")._replace(manifest_sha256=sha256)
    return lifecycle.cold_reason(past, now)


def _commit(request: Request, attempt: Journal, sealed: Sealed, timeline: log.Timeline) -> None:
    """Restored and verified, unless another container of the pod was started cold meanwhile."""
    outcome = _outcome(request, lifecycle.RESTORED, "")._replace(
        manifest_sha256=sealed.sha256, timeline=tuple(timeline.phases)
    )
    with journal.locked(request.pod_dir):
        for one in _past(request):
            if one.binds:
                raise FailedPreconditionError(
                    f"container {one.container} of the pod was started cold at {one.time}"
                )
        attempt.record("restored", outcome=outcome._asdict())
        running = {c.name for c in sealed.manifest.containers if c.state == "running"}
        if running <= _restored(request.pod_dir):
            loopback.let_go(request.pod_dir)


def _open_checkpoint(request: Request, attempt: Journal) -> tuple[int, Sealed]:
    """The checkpoint's directory, which only root can change, and what it is."""
    root, names = request.checkpoint_root, request.order.path
    archive_fd = checkpoint_dir.open_archive(root, names)
    if archive_fd is not None:
        attempt.record("copy", path=request.copy_dir)
        try:
            return checkpoint_dir.unpack(archive_fd, request.copy_dir, _name(request))
        except ImageError as error:
            raise ImageError(f"checkpoint {request.checkpoint_path}: {error}") from error
    dir_fd = checkpoint_dir.open_named(root, names)
    if not checkpoint_dir.is_private(root, names, dir_fd):
        dir_fd = _copied(request, attempt, dir_fd)
    return dir_fd, checkpoint_dir.read(dir_fd, request.checkpoint_path)


def _copied(request: Request, attempt: Journal, dir_fd: int) -> int:
    log.warning(
        "others than root can write to the checkpoint: copying", path=request.checkpoint_path
    )
    attempt.record("copy", path=request.copy_dir)
    os.makedirs(request.copy_dir, mode=0o700)
    copy_fd = confine.open_dir(request.copy_dir)
    room = os.statvfs(copy_fd)
    confine.copy_tree(
        dir_fd,
        copy_fd,
        max_entries=_COPY_LIMIT_ENTRIES,
        max_bytes=room.f_bavail * room.f_frsize,
    )
    os.close(dir_fd)
    return copy_fd


def _container(manifest: Manifest, request: Request) -> Container | None:
    """The container that is meant; by hand, where nobody names it, the only one."""
    identity = request.order.identity
    if identity is None:
        running = [c for c in manifest.containers if c.state == "running"]
        if len(running) != 1:
            raise FailedPreconditionError(
                f"checkpoint {request.checkpoint_path} holds {len(running)} containers, expected "
                "one where no pod names the container"
            )
        return running[0]
    return next((c for c in manifest.containers if c.name == identity.container), None)


def _verify(checkpoint_fd: int, sealed: Sealed, request: Request, container: Container) -> None:
    """Hold the checkpoint to its manifest, but for GPU memory, which is read only once."""
    if not sealed.is_verifiable:
        log.warning("no manifest: its files cannot be verified", path=request.checkpoint_path)
        return
    unread = _gpu_memory(sealed.manifest, container)
    _refuse(request, checkpoint_dir.problems(checkpoint_fd, sealed.manifest, unread))


def _gpu_memory(manifest: Manifest, container: Container) -> dict[str, File]:
    """The files, by path, that may hold GPU memory: such a one is verified when it is used."""
    if not container.cuda:
        return {}
    start = f"{container.name}/checkpoint/{images.PARENT}/pages-"
    return {file.path: file for file in manifest.files if file.path.startswith(start)}


def _refuse(request: Request, wrong: list[str]) -> None:
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise ImageError(
            f"checkpoint {request.checkpoint_path}: {wrong[0]}{more}; copy or take it again"
        )


def _compare(sealed: Sealed, request: Request, criu_version: Child) -> None:
    here = this_node.facts(criu.version(criu_version))
    reasons = compatibility.refusals(sealed.manifest.node, here) if sealed.is_verifiable else []
    if reasons:
        raise FailedPreconditionError(
            f"checkpoint {request.checkpoint_path} {'; it '.join(reasons)}"
        )


def _apply_rw_layer(request: Request, attempt: Journal, checkpoint_fd: int, name: str) -> None:
    """Make the root filesystem what it was; only a checkpoint of others can be without layer."""
    attempt.record("rw layer")
    root_fd = confine.open_dir(bundle.rootfs(request.bundle_dir, request.spec))
    try:
        deleted = checkpoint_dir.read_optional(checkpoint_fd, f"{name}/deleted.files")
        if deleted is not None:
            rootfs_diff.delete(root_fd, checkpointctl.deleted_files(deleted))
        layer_fd = checkpoint_dir.open_optional(checkpoint_fd, f"{name}/rootfs-diff.tar")
        if layer_fd is not None:
            rootfs_diff.apply(layer_fd, root_fd, allowed_devices=privilege.devices(request.spec))
            os.close(layer_fd)
    finally:
        os.close(root_fd)  # open, it would keep the rootfs from being unmounted


def _put_back_volumes(
    request: Request,
    attempt: Journal,
    checkpoint_fd: int,
    manifest: Manifest,
    timeline: log.Timeline,
) -> None:
    if not manifest.captured:
        return
    from grit_runtime import volumes  # noqa: PLC0415  most checkpoints have none

    user = request.container_id
    with timeline.phase("volumes"):
        attempt.record("volumes", pod_dir=request.pod_dir, container_id=user)
        volumes.put_back(checkpoint_fd, manifest.captured, request.spec, request.pod_dir, user)


def _plan(request: Request, dump: Dump, live: Live) -> mount_plan.MountPlan:
    plan = mount_plan.plan_mounts(mount_plan.dumped_mounts(dump.mounts), live.mounts)
    reason = mount_plan.missing_reason(plan)
    if reason:
        raise FailedPreconditionError(f"checkpoint {request.checkpoint_path}: {reason}")
    return plan


def _gpu_driver(request: Request, container: Container) -> Driver | None:
    """The driver, which gets ready while digests are compared; None if nobody will ask it."""
    if not container.cuda:
        return None
    from grit_runtime import gpu  # noqa: PLC0415  a pod without GPUs does not pay for it

    return gpu.open_driver(request.runc.token, processes=len(container.cuda))


def _check_room(request: Request, images_fd: int, dump: Dump) -> None:
    """That what is dumped is whole and has room: memory below the limit, process numbers free."""
    images.check_pages(images_fd, dump.names)
    pod_check.check_memory(request.spec, images.pages_bytes(images_fd, dump.names))
    pids = [ns for ns in request.spec["linux"]["namespaces"] if ns["type"] == "pid"]
    path = pids[0].get("path") if pids else "/proc/self/ns/pid"  # none: the node's
    if path:
        pod_check.check_numbers(dump.cores, namespaces.tasks(path))


def _others_sysv(
    request: Request, checkpoint_fd: int, manifest: Manifest, container: Container, dump: Dump
) -> list[str]:
    """The images of the pod's SysV IPC objects, if another container's restore makes them."""
    found = [name for kind in pod_check.SYSV_IMAGES for name in images.named(dump.names, kind)]
    if not found or request.order.identity is None:
        return []
    running = [c.name for c in manifest.containers if c.state == "running"]
    attached = [
        name
        for name in running
        if images.attaches_sysv(confine.descend(checkpoint_fd, (name, "checkpoint")))
    ]
    return [] if pod_check.sysv_owner(running, attached) == container.name else found


def _plan_gpus(
    request: Request,
    manifest: Manifest,
    container: Container,
    driver: Driver | None,
    checkpoint_fd: int,
    dump: Dump,
) -> Gpus | None:
    """What becomes of the container's GPU memory in the new pod; None if it had none."""
    if not container.cuda:
        return None
    from grit_runtime import gpu  # noqa: PLC0415
    from grit_runtime.host import staged_memory  # noqa: PLC0415

    placement = gpu.plan(driver, container, request.spec, request.order.device_map)
    images_path = (container.name, "checkpoint")
    images_fd = confine.descend(checkpoint_fd, images_path)
    found = staged_memory.in_dump(images_fd, dump)
    left_out = staged_memory.left_out(images_fd, found.values())
    os.close(images_fd)
    memory = _gpu_memory(manifest, container)
    saved = {memory.pop("/".join((*images_path, name))): one for name, one in found.items()}
    # The rest is CRIU's to bring back, or nobody's.
    _refuse(request, checkpoint_dir.damaged(checkpoint_fd, memory.values()))
    return Gpus(placement, saved, left_out)


def _place_sockets(request: Request, attempt: Journal, dump: Dump, live: Live) -> list[str]:
    """Make the pod's network fit for the dumped sockets; what CRIU is to be told of them.

    The node's own network is never changed: a dump could have any address in it.
    """
    dumped = connections.sockets(dump.files)
    paths = [
        ns["path"]
        for ns in request.spec["linux"]["namespaces"]
        if ns["type"] == "network" and "network" not in live.node_namespaces
    ]
    bound = sorted({socket.local.address for socket in dumped if socket.is_bound_to_address})
    missing = network.missing_addresses(paths, bound)
    if missing:
        reason = None
        if request.order.tcp != "close":
            reason = connections.unreachable(dumped, missing)
        if not paths:
            reason = f"its sockets are bound to {missing[0]}, which this node has not"
        if reason:
            raise FailedPreconditionError(f"checkpoint {request.checkpoint_path}: {reason}")
        attempt.record("addresses", path=paths[0], addresses=missing)
        network.add_to_loopback(paths[0], missing)
    if request.order.tcp == "close":
        return ["tcp-close"]
    if paths and connections.reaches_neighbour(dumped):
        with journal.locked(request.pod_dir):
            loopback.hold(request.pod_dir, paths[0])
    return ["tcp-established"] if any(socket.is_connected for socket in dumped) else []


def _own_cgroup(request: Request, dump: Dump, live: Live) -> list[str]:
    """Show the container its own cgroup on v1, where runc would show that which it is in itself.

    Only for the cgroupfs driver: what systemd calls a cgroup is no path.
    """
    cgroups_path = request.spec["linux"].get("cgroupsPath", "")
    shown = {
        mount.destination
        for mount in mount_plan.dumped_mounts(dump.mounts)
        if mount.key is not None
    }
    return [
        f"external mnt[{top.destination}/{name}]:{directory}{cgroups_path}"
        for top in live.mounts
        if top.fs_type == "cgroup" and cgroups_path.startswith("/")
        for name, directory in cgroup.hierarchies().items()
        if f"{top.destination}/{name}" in shown
    ]


def _configure_criu(request: Request, lines: list[str]) -> None:
    """Write CRIU's configuration file, and name it in config.json where runc looks for it."""
    path = _criu_config_path(request)
    criu.write_config(path, lines)
    annotations = {**request.spec["annotations"], "org.criu.config": path}
    config_json.write(request.bundle_dir, {**request.spec, "annotations": annotations})


def _criu_config_path(request: Request) -> str:
    return f"{request.attempt_dir}/criu.conf"


def _mount_images(
    request: Request, attempt: Journal, images_fd: int, rewritten: dict[str, bytes | None]
) -> str:
    """A read-only view of the images, with the *rewritten* in front of those they are made of.

    In the place of one that is None there is no image.

    A mount, because links fail: absolute symbolic ones in CRIU, which opens images after it has
    changed its mount namespace, and hard ones across filesystems.
    """
    rewritten_dir = f"{request.attempt_dir}/rewritten"
    images_dir = f"{request.attempt_dir}/images"
    os.mkdir(rewritten_dir)
    os.mkdir(images_dir)
    for name, data in rewritten.items():
        if data is None:
            os.mknod(f"{rewritten_dir}/{name}", stat.S_IFCHR)  # 0:0, an overlay's whiteout
            continue
        with open(f"{rewritten_dir}/{name}", "xb") as file:
            file.write(data)
    attempt.record("mount", path=images_dir)
    overlay.mount_layers([rewritten_dir, f"/proc/self/fd/{images_fd}"], images_dir)
    return images_dir


def _rewritten(spec: dict[str, Any], images_fd: int, dump: Dump) -> dict[str, bytes]:
    """The images whose content CRIU would write into the new pod's UTS and IPC namespaces.

    It sets hostname and limits even of a namespace that it joins, so the new pod's own go in.
    """
    joined = {ns["type"]: ns["path"] for ns in spec["linux"]["namespaces"] if ns.get("path")}
    live = namespaces.read(joined.get("uts"), joined.get("ipc"))
    files = {}
    if "uts" in joined:
        for name in images.named(dump.names, "utsns"):
            image = images.load(images_fd, name)
            uts = criu_image.entry(image, criu_pb2.utsns_entry)
            uts.nodename, uts.domainname = live.node_name, live.domain_name
            files[name] = criu_image.serialize(criu_image.with_entry(image, 0, uts))
    if "ipc" in joined:
        for name in images.named(dump.names, "ipcns-var"):
            image = images.load(images_fd, name)
            ipc = criu_image.entry(image, criu_pb2.ipc_var_entry)
            for field, numbers in live.ipc_sysctls.items():
                if field == "sem_ctls":
                    ipc.sem_ctls[:] = numbers
                else:
                    setattr(ipc, field, numbers[0])
            files[name] = criu_image.serialize(criu_image.with_entry(image, 0, ipc))
    return files


def _carry_log(identity: Identity | None, checkpoint_fd: int, name: str, attempt: Journal) -> None:
    """Put the container's log so far in front of what it will write.

    containerd has the new log open for append already; an empty one is ours to fill.
    """
    if identity is None:
        return
    pod = f"{identity.namespace}_{identity.pod}_{identity.pod_uid}"
    directory = f"{_POD_LOGS_DIR}/{pod}/{identity.container}"
    path = _empty_newest_log(directory)
    if path is None:
        log.info("container log not carried: no empty log", directory=directory)
        return
    data = checkpoint_dir.read_optional(
        checkpoint_fd, f"{name}/container.log", checkpoint_dir.CONTAINER_LOG_LIMIT_BYTES
    )
    if data is None:
        return
    attempt.record("log", path=path, size_bytes=str(len(data)))
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


def _runc_restore(request: Request, attempt: Journal, manifest: Manifest, images_dir: str) -> None:
    """`runc restore --detach` with the caller's standard streams, which become the container's."""
    cgroups_path = request.spec["linux"].get("cgroupsPath", "")
    if cgroups_path and cgroup.pids(cgroups_path):
        # An attempt that fails ends all that is in the container's cgroup.
        raise FailedPreconditionError(f"cgroup {cgroups_path} already holds processes")
    restore_log = f"{request.log_dir}/restore.log"
    runc_log = f"{request.log_dir}/runc.log"
    for stale in (restore_log, runc_log):
        with suppress(FileNotFoundError):
            os.unlink(stale)
    flags = ["--detach", "--bundle", request.bundle_dir, *request.flags]
    flags += ["--image-path", images_dir, "--work-path", request.log_dir]
    if manifest.options.file_locks:
        flags.append("--file-locks")
    lsm = privilege.lsm_profile(request.spec)
    if lsm:
        flags += ["--lsm-profile", lsm]
    tool = request.runc
    attempt.record(
        "restore",
        token=tool.token,
        program=tool.program,
        global_options=list(tool.global_options),
        container_id=request.container_id,
        cgroups_path=cgroups_path,
    )
    logged = tool._replace(
        global_options=(*tool.global_options, "--log", runc_log, "--log-format", "json")
    )
    status = process.run_attached(
        logged.argv("restore", *flags, request.container_id), token=tool.token
    )
    if status != 0:
        reason = criu.decisive_line(restore_log) or runc.last_error(runc_log) or f"exit {status}"
        raise CommandError(
            f"restore of container {request.container_id} from {request.checkpoint_path} failed: "
            f"{reason}; see {restore_log}"
        )
    # A dump of this container goes by the same file, and would take the places for the names.
    os.truncate(_criu_config_path(request), 0)
    if request.spec["root"].get("readonly"):
        # CRIU 4.1 gives a root that was read-only back writable.
        namespaces.make_root_readonly(runc.state(tool, request.container_id).pid)


def _bring_back_gpus(
    request: Request,
    attempt: Journal,
    container: Container,
    dump: Dump,
    gpus: Gpus,
    timeline: log.Timeline,
) -> None:
    """Give the restored processes the cards of the new pod, and their memory back."""
    from grit_runtime import gpu  # noqa: PLC0415
    from grit_runtime.host import gpu_facts  # noqa: PLC0415

    init_pid = runc.state(request.runc, request.container_id).pid
    devices.equalize(init_pid, request.spec)
    inside = gpu_facts.pids_by_container_pid(sorted(cgroup.pids(cgroup.of(init_pid))))
    needed = {process.pid for process in container.cuda} | {one.pid for one in gpus.saved.values()}
    gone = [str(pid) for pid in sorted(needed - inside.keys())]
    if gone:
        raise ImageError(f"CUDA process {', '.join(gone)} of the manifest did not come back")
    if gpus.saved:
        _fill_and_continue(request, gpus.saved, dump, inside, timeline)
    pids = [inside[process.pid] for process in container.cuda]
    attempt.record("gpu", pids=pids, token=request.runc.token)
    gpu.bring_back(gpus.placement, container, pids, timeline)
    gpus.placement.driver.close()


def _fill_and_continue(
    request: Request,
    saved: dict[File, Saved],
    dump: Dump,
    pids: dict[int, int],
    timeline: log.Timeline,
) -> None:
    """Give stopped tasks the memory that CRIU has left out, and let those run that ran before.

    *pids* are this node's by those of the dump.
    """
    from grit_runtime.host import process_memory  # noqa: PLC0415

    with timeline.phase("gpu memory", size_bytes=sum(file.size_bytes for file in saved)):
        here = [one._replace(pid=pids[one.pid]) for one in saved.values()]
        digests = process_memory.fill_and_hash(here)
    _refuse(request, checkpoint_dir.different(saved, digests))
    for task in dump.tasks:
        if task.pid in pids and dump.cores[task.pid].tc.task_state == _TASK_ALIVE:
            os.kill(pids[task.pid], signal.SIGCONT)


def _revive_gpus(request: Request, attempt: Journal) -> None:
    """Bring back the CUDA processes that another program had suspended, onto the cards they had."""
    from grit_runtime import gpu  # noqa: PLC0415
    from grit_runtime.host import gpu as host_gpu  # noqa: PLC0415

    init_pid = runc.state(request.runc, request.container_id).pid
    pids = host_gpu.users(cgroup.pids(cgroup.of(init_pid)))
    if not pids:
        return
    attempt.record("gpu", pids=pids, token=request.runc.token)
    devices.equalize(init_pid, request.spec)
    try:
        gpu.revive_pids(request.runc.token, pids)
    except SourceLostError as error:
        raise CommandError(f"GPU memory of container {_name(request)}: {error}") from error


def _outcome(request: Request, outcome: str, reason: str, *, binds: bool = False) -> Outcome:
    identity = request.order.identity
    return Outcome(
        time=log.rfc3339(),
        outcome=outcome,
        reason=reason,
        namespace=identity.namespace if identity else "",
        pod=identity.pod if identity else "",
        pod_uid=identity.pod_uid if identity else "",
        sandbox_id=identity.sandbox_id if identity else "",
        container=_name(request),
        container_id=request.container_id,
        checkpoint=request.checkpoint_path,
        binds=binds,
    )


def _past(request: Request) -> tuple[Outcome, ...]:
    identity = request.order.identity
    return records.of_pod(identity.pod_uid) if identity else ()


def _name(request: Request) -> str:
    identity = request.order.identity
    return identity.container if identity else request.container_id
