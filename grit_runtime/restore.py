"""Restoring a container from a checkpoint, in the place of starting it.

Called at `create`, with the bundle that containerd made for the new pod. Everything comes from two
sides: the live pod's config.json, which is trusted, and the checkpoint, which is not.

An attempt is a directory of its own with a journal. Whoever finds the journal without a living
writer and without the step "restored" undoes it: the pod's next create, the sandbox's delete,
`grit recover`.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from typing import Any, NamedTuple

from grit_runtime import log, volumes
from grit_runtime.errors import CommandError, FailedPreconditionError, ImageError
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
    namespaces,
    network,
    overlay,
    process,
    rootfs_diff,
    runc,
    runc_dump,
)
from grit_runtime.host import node as this_node
from grit_runtime.host.runc import Runc
from grit_runtime.model import checkpointctl, compatibility, connections, mount_plan, privilege
from grit_runtime.proto import criu_pb2
from grit_runtime.wire import criu_image

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime import gpu
    from grit_runtime.host.checkpoint_dir import Sealed
    from grit_runtime.host.gpu import Driver
    from grit_runtime.host.journal import Journal
    from grit_runtime.host.process import Child
    from grit_runtime.model.annotations import Identity, RestoreOrder
    from grit_runtime.model.manifest import Container, Manifest
    from grit_runtime.model.privilege import Dump, Live

_POD_LOGS_DIR = "/var/log/pods"
_RESTORED_DIR = "/var/lib/grit/restored"
_COPIES_DIR = "/var/lib/grit/copies"
_JOURNAL = "attempt.journal"
_COPY_LIMIT_ENTRIES = 100_000


class Request(NamedTuple):
    """One `create` call, as it is to become a `restore`."""

    container_id: str
    bundle_dir: str
    spec: dict[str, Any]  # the bundle's config.json
    runc: Runc
    flags: tuple[str, ...]  # of `create`, those that `restore` knows too
    order: RestoreOrder
    checkpoint_root: str
    huge_pages: bool

    @property
    def checkpoint_path(self) -> str:
        return "/".join((self.checkpoint_root, *self.order.path))

    @property
    def attempt_dir(self) -> str:
        identity = self.order.identity
        sandbox_id = identity.sandbox_id if identity else self.container_id
        return f"{journal.PODS_DIR}/{sandbox_id}/{self.container_id}"

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
    """Restore the container; False if it is to be started cold instead, which is logged with why.

    Blocks until the container runs. When it raises, nothing of the attempt is left: no process,
    mount or file.
    """
    sweep(os.path.dirname(request.attempt_dir), starting=_name(request))
    attempt = journal.begin(f"{request.attempt_dir}/{_JOURNAL}")
    try:
        restored = _attempt(request, attempt)
    except BaseException:
        undo(attempt)
        raise
    if restored:
        attempt.close()
    else:
        undo(attempt)
    return restored


def claim_start(attempt_dir: str) -> bool:
    """Whether `start` of this container is already done, by its restore; true once.

    A start says that `create` was heard to succeed, so it is here that the restore becomes a fact:
    from now on this pod does not restore this container from this checkpoint again.
    """
    held = journal.adopt(f"{attempt_dir}/{_JOURNAL}")
    if held is None:
        return False
    steps = {step["step"]: step for step in held.steps()}
    claimed = "restored" in steps and "started" not in steps
    if claimed:
        _write_record(steps["restored"])
        held.record("started")
    held.close()
    return claimed


def sweep(pod_dir: str, *, starting: str | None = None) -> None:
    """Undo the pod's attempts whose writer has died before the container was restored.

    *starting* is the container about to be created again: an attempt of it that was restored and
    never started is one whose success nobody heard of.
    """
    for path in journal.beneath(pod_dir, f"*/{_JOURNAL}"):
        held = journal.adopt(path)
        if held is None:
            continue
        steps = {step["step"]: step for step in held.steps()}
        restored = steps.get("restored")
        if restored and ("started" in steps or restored["container"] != starting):
            held.close()
        else:
            log.warning("undoing an attempt that died", journal=path)
            undo(held)


def forget(attempt_dir: str) -> None:
    """The container is being deleted: drop what is kept of its restore, undo a dead attempt."""
    held = journal.adopt(f"{attempt_dir}/{_JOURNAL}")
    if held is None:
        return
    if any(step["step"] == "started" for step in held.steps()):
        _end(held)
    else:
        undo(held)


def forget_pod(pod_dir: str) -> None:
    """The sandbox is being deleted: as `forget`, for all containers of its pod."""
    for path in journal.beneath(pod_dir, f"*/{_JOURNAL}"):
        forget(os.path.dirname(path))
    volumes.forget(pod_dir)


def recover() -> None:
    """Undo the dead attempts of every pod."""
    for pod_dir in journal.beneath(journal.PODS_DIR, "*"):
        sweep(pod_dir)


def undo(attempt: Journal) -> None:
    """Leave nothing of the attempt: no process, container, cgroup, mount, log or file."""
    for step in reversed(attempt.steps()):
        match step["step"]:
            case "gpu":
                from grit_runtime import gpu  # noqa: PLC0415

                gpu.suspend_to_kill(step["token"], step["pids"])
            case "restore":
                _kill(step)
            case "mount":
                with suppress(OSError):  # it may have died before it mounted
                    overlay.unmount(step["path"])
            case "log":
                _empty_log(step["path"], int(step["size_bytes"]))
            case "volumes":
                volumes.let_go(step["pod_dir"], step["container_id"])
            case "addresses":
                network.remove_from_loopback(step["path"], step["addresses"])
            case "copy":
                _remove(step["path"])
            case _:
                pass  # nothing to take back
    _end(attempt)


def _attempt(request: Request, attempt: Journal) -> bool:
    begin = time.monotonic()
    timeline = log.Timeline()
    criu_version = criu.ask_version(request.runc.token)  # answers while digests are compared
    checkpoint_fd, sealed = _open_checkpoint(request, attempt)
    container = _container(sealed.manifest, request)
    reason = _cold_reason(request, sealed, container)
    if container is None or reason:
        log.info("starting cold", container_id=request.container_id, reason=reason)
        return False

    driver = _gpu_driver(request, container)
    with timeline.phase("verify", size_bytes=sum(f.size_bytes for f in sealed.manifest.files)):
        _verify(checkpoint_fd, sealed, request)
    with timeline.phase("check"):
        _compare(sealed, request, criu_version)
        images_fd = confine.descend(checkpoint_fd, (container.name, "checkpoint"))
        dump = images.read(images_fd)
        live = bundle.live(request.bundle_dir, request.spec)
        plan = _plan(request, dump, live)
        privilege.check(dump, live)
        adapted = runc_dump.adapted(images_fd, dump, request.spec, plan)
        placement = _plan_gpus(request, container, driver)
    with timeline.phase("rw layer"):
        _apply_rw_layer(request, checkpoint_fd, container.name)
    if sealed.manifest.captured:
        with timeline.phase("volumes"):
            _put_back_volumes(request, attempt, checkpoint_fd, sealed.manifest)
    with timeline.phase("prepare"):
        _configure_criu(request, _place_sockets(request, attempt, dump))
        rewritten = adapted | _rewritten(request.spec, images_fd, dump)
        images_dir = _mount_images(request, attempt, images_fd, rewritten)
    _carry_log(request.order.identity, checkpoint_fd, container.name, attempt)
    with huge_pages.enabled(wanted=placement is not None and request.huge_pages):
        with timeline.phase("restore"):
            _runc_restore(request, attempt, sealed.manifest, images_dir)
        if placement:
            _bring_back_gpus(request, attempt, container, placement, timeline)
            placement.driver.close()
    overlay.unmount(images_dir)
    _remove(request.copy_dir)
    timeline.add("all", seconds=time.monotonic() - begin)
    attempt.record("restored", **_record(request, sealed, timeline))
    return True


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


def _cold_reason(request: Request, sealed: Sealed, container: Container | None) -> str | None:
    """Why the container is to be started as if there were no checkpoint, if it is."""
    if container is None:
        return "the checkpoint does not list this container"
    if container.state != "running":
        return "it had ended before the checkpoint"
    record = _record_path(request, sealed)
    if record is not None and os.path.exists(record):
        return "it was restored from this checkpoint before; a checkpoint is restored once"
    return None


def _verify(checkpoint_fd: int, sealed: Sealed, request: Request) -> None:
    if not sealed.is_verifiable:
        log.warning("no manifest: its files cannot be verified", path=request.checkpoint_path)
        return
    wrong = checkpoint_dir.problems(checkpoint_fd, sealed.manifest)
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


def _apply_rw_layer(request: Request, checkpoint_fd: int, name: str) -> None:
    """Make the root filesystem what it was; only a checkpoint of others can be without layer."""
    root_fd = confine.open_dir(bundle.rootfs(request.bundle_dir, request.spec))
    deleted = checkpoint_dir.read_optional(checkpoint_fd, f"{name}/deleted.files")
    if deleted is not None:
        rootfs_diff.delete(root_fd, checkpointctl.deleted_files(deleted))
    layer_fd = checkpoint_dir.open_optional(checkpoint_fd, f"{name}/rootfs-diff.tar")
    if layer_fd is not None:
        rootfs_diff.apply(layer_fd, root_fd, allowed_devices=privilege.devices(request.spec))
        os.close(layer_fd)
    os.close(root_fd)


def _put_back_volumes(
    request: Request, attempt: Journal, checkpoint_fd: int, manifest: Manifest
) -> None:
    pod_dir = os.path.dirname(request.attempt_dir)
    attempt.record("volumes", pod_dir=pod_dir, container_id=request.container_id)
    volumes.put_back(checkpoint_fd, manifest.captured, request.spec, pod_dir, request.container_id)


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


def _plan_gpus(
    request: Request, container: Container, driver: Driver | None
) -> gpu.Placement | None:
    """Where the container's GPU memory goes in the new pod; None if it had none."""
    if not container.cuda:
        return None
    from grit_runtime import gpu  # noqa: PLC0415

    return gpu.plan(driver, container, request.spec, request.order.device_map)


def _place_sockets(request: Request, attempt: Journal, dump: Dump) -> list[str]:
    """Make the pod's network fit for the dumped sockets; what CRIU is to be told of them."""
    dumped = connections.sockets(dump.files)
    paths = [ns["path"] for ns in request.spec["linux"]["namespaces"] if ns["type"] == "network"]
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
    return ["tcp-established"] if any(socket.is_connected for socket in dumped) else []


def _configure_criu(request: Request, lines: list[str]) -> None:
    """Write CRIU's configuration file, and name it in config.json where runc looks for it."""
    path = f"{request.attempt_dir}/criu.conf"
    criu.write_config(path, lines)
    annotations = {**request.spec["annotations"], "org.criu.config": path}
    config_json.write(request.bundle_dir, {**request.spec, "annotations": annotations})


def _mount_images(
    request: Request, attempt: Journal, images_fd: int, rewritten: dict[str, bytes]
) -> str:
    """A read-only view of the images, with the *rewritten* in front of those they are made of.

    A mount, because links fail: absolute symbolic ones in CRIU, which opens images after it has
    changed its mount namespace, and hard ones across filesystems.
    """
    rewritten_dir = f"{request.attempt_dir}/rewritten"
    images_dir = f"{request.attempt_dir}/images"
    os.mkdir(rewritten_dir)
    os.mkdir(images_dir)
    for name, data in rewritten.items():
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
    data = checkpoint_dir.read_optional(checkpoint_fd, f"{name}/container.log")
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


def _empty_log(path: str, size_bytes: int) -> None:
    """Empty the log again, unless more than what we carried has come into it."""
    with suppress(FileNotFoundError):
        if os.path.getsize(path) == size_bytes:
            os.truncate(path, 0)


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


def _bring_back_gpus(
    request: Request,
    attempt: Journal,
    container: Container,
    placement: gpu.Placement,
    timeline: log.Timeline,
) -> None:
    """Give the restored processes the cards of the new pod, and their memory back."""
    from grit_runtime import gpu  # noqa: PLC0415
    from grit_runtime.host import gpu_facts  # noqa: PLC0415

    init_pid = runc.state(request.runc, request.container_id).pid
    devices.equalize(init_pid, request.spec)
    inside = gpu_facts.pids_by_container_pid(sorted(cgroup.pids(cgroup.of(init_pid))))
    gone = [str(process.pid) for process in container.cuda if process.pid not in inside]
    if gone:
        raise ImageError(f"CUDA process {', '.join(gone)} of the manifest did not come back")
    pids = [inside[process.pid] for process in container.cuda]
    attempt.record("gpu", pids=pids, token=request.runc.token)
    gpu.bring_back(placement, container, pids, timeline)


def _kill(step: dict[str, Any]) -> None:
    """End what a `runc restore` has begun, whoever of runc, CRIU and the tasks still lives."""
    tool = Runc(step["program"], tuple(step["global_options"]), step["token"])
    process.wait_gone(tool.token, deadline_s=0)
    if step["cgroups_path"]:
        cgroup.kill(step["cgroups_path"])
    runc.delete(tool, step["container_id"])


def _record(request: Request, sealed: Sealed, timeline: log.Timeline) -> dict[str, Any]:
    """What is kept of a restore for as long as the node lives."""
    return {
        "path": _record_path(request, sealed),
        "checkpoint": request.checkpoint_path,
        "manifest_sha256": sealed.sha256,
        "container": _name(request),
        "container_id": request.container_id,
        "restored": log.rfc3339(),
        "timeline": timeline.phases,
    }


def _write_record(step: dict[str, Any]) -> None:
    path = step["path"]
    if path is None:  # by hand, where there is no pod to remember
        return
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(step, file, indent=1)
    os.replace(f"{path}.new", path)


def _record_path(request: Request, sealed: Sealed) -> str | None:
    identity = request.order.identity
    if identity is None:
        return None
    return f"{_RESTORED_DIR}/{identity.pod_uid}/{identity.container}.{sealed.sha256[:32]}.json"


def _name(request: Request) -> str:
    identity = request.order.identity
    return identity.container if identity else request.container_id


def _remove(directory: str) -> None:
    if os.path.isdir(directory):
        import shutil  # noqa: PLC0415  brings all compressors, and is seldom needed

        shutil.rmtree(directory)


def _end(held: Journal) -> None:
    _remove(os.path.dirname(held.path))
    held.close()
    with suppress(OSError):  # the pod has other attempts
        os.rmdir(os.path.dirname(os.path.dirname(held.path)))
