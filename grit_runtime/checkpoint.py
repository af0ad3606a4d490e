"""Taking a checkpoint of a pod: freeze, dump, copy, seal, and the undoing of each.

Every step with an effect is recorded in the pod's journal before it is taken; holds.py undoes it.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import ExitStack, contextmanager
from typing import Literal, NamedTuple

from grit_runtime import gpu, holds, log, preflight, volumes
from grit_runtime.dumps import GHOST_LIMIT_BYTES, LINK_REMAP, Dumps, dump, exited
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
    still,
)
from grit_runtime.host import node as this_node
from grit_runtime.host.process_memory import Saved
from grit_runtime.host.runc import Runc
from grit_runtime.model import connections, lifecycle
from grit_runtime.model import manifest as manifests
from grit_runtime.model.annotations import CAPTURE, capture, checkpoint_name, tcp
from grit_runtime.model.lifecycle import Outcome
from grit_runtime.model.manifest import Manifest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from grit_runtime.config import Config
    from grit_runtime.host.containerd import Container, Pod
    from grit_runtime.host.gpu import Driver
    from grit_runtime.host.journal import Journal

After = Literal["running", "frozen", "stopped"]


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
    held = holds.begin(order.pod)
    token = process.new_token()
    try:
        with gpu.opened_driver(token) as driver:
            sealed = _take(order, config, final_dir, token, driver, held)
    except BaseException:
        holds.undo(held)
        raise
    if order.after == "frozen":
        held.close()
    else:
        holds.end(held)
    return sealed


def suspend_gpus(pod: Pod, config: Config) -> int:
    """Free the GPUs of a running pod and let it be; the device memory freed, in bytes.

    The way back is `grit gpu restore`. On any failure the pod runs as before.
    """
    token = process.new_token()
    tool = Runc("runc", ("--root", config.runc_root), token)
    containers = [_gpu_container(tool, container) for container in _running(pod)]
    held = holds.begin(pod)
    try:
        held.record("begin", token=token, runc_root=config.runc_root)
        with gpu.opened_driver(token) as driver, huge_pages.enabled(wanted=config.huge_pages):
            found = _survey_running(driver, containers, pod)
            gpu.refuse_unrestorable(found, containers)
            held.record("gpu", pids=found.running_pids)
            gpu.suspend(found, log.Timeline())
    except BaseException:
        holds.undo(held)
        raise
    holds.end(held)
    return found.size_bytes


def _survey_running(driver: Driver | None, containers: list[gpu.Container], pod: Pod) -> gpu.Survey:
    found = gpu.survey(driver, containers) if driver else None
    if found is None or not found.running_pids:
        raise NotFoundError(f"pod {pod.namespace}/{pod.name}: no running CUDA process")
    return found


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


def _take(
    order: Order,
    config: Config,
    final_dir: str,
    token: str,
    driver: Driver | None,
    held: Journal,
) -> Sealed:
    timeline = log.Timeline()
    tool = Runc("runc", ("--root", config.runc_root), token)
    running = _running(order.pod)
    staging_dir = f"{os.path.dirname(final_dir)}/.{order.name}.{token}"
    memory_dir = f"{staging_dir}.memory"  # its files have a second name in the checkpoint later
    work_dir = f"{journal.PODS_DIR}/{order.pod.sandbox_id}/dump"

    outcome = _outcome(order, config, lifecycle.FAILED, "the engine was killed")
    held.record("begin", token=token, runc_root=config.runc_root, outcome=outcome._asdict())
    for path in (staging_dir, memory_dir, work_dir):
        held.record("directory", path=path)
        os.makedirs(path, mode=0o700)

    containers = [_gpu_container(tool, container) for container in running]
    versions = (criu.ask_version(token), runc.ask_version(tool))
    lines = preflight.refuse_undumpable(containers)
    asked_flags = runc.ask_flags(tool, "checkpoint")
    tcp = _tcp_options(containers)
    chosen = _choose_volumes(order, containers)  # and again when nothing changes any more
    thawed = _thaw_for_driver(tool, containers, held)
    found = gpu.survey(driver, containers) if driver else None
    if found and found.all:
        gpu.refuse_unrestorable(found, containers)
    _check_room(staging_dir, containers, chosen, gpu_bytes=found.size_bytes if found else 0)
    begin = time.monotonic()
    found, saved, frozen = _suspend_and_freeze(
        order, config, tool, found, containers, thawed, memory_dir, held, timeline
    )
    _silence(order, containers, tcp, held)
    gpus = {c.name: gpu.describe(found, c) for c in containers} if found else {}
    chosen = _choose_volumes(order, containers)
    dumps = Dumps(
        tool=tool,
        flags=[LINK_REMAP] if runc.knows(asked_flags, LINK_REMAP) else [],
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
        saved=saved,
        digests={},
        driver_version=found.version if found else "",
    )
    dumped = [dump(dumps, container) for container in running]
    with timeline.phase("volumes"):
        captured = volumes.save(chosen, staging_dir)
    link_remaps.drop(held.steps())
    if saved and order.after != "stopped":
        with timeline.phase("gpu memory back"):
            holds.give_back_memory(held, saved)
    if order.after == "running":
        _go_on(tool, found, frozen, thawed, timeline)
        timeline.add("paused", seconds=time.monotonic() - begin)

    ended = [exited(order.pod, c, chosen) for c in order.pod.containers if c.state == "exited"]
    # A source that goes on can be checkpointed again; one that ends has nothing but this.
    sync = order.after == "stopped"
    with _written_back(staging_dir, timeline, wanted=sync):
        manifest = _manifest(order, captured, [*dumped, *ended], dumps)
    with timeline.phase("seal"):
        _sign(manifest, staging_dir, config.signing_key)
        _seal(manifest, staging_dir, final_dir, sync=sync)
    _leave_source(order, tool, held, timeline)
    for path in (memory_dir, work_dir):  # the memory could be asked for until now
        shutil.rmtree(path)
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
    order: Order,
    config: Config,
    tool: Runc,
    found: gpu.Survey | None,
    containers: list[gpu.Container],
    thawed: list[str],
    memory_dir: str,
    held: Journal,
    timeline: log.Timeline,
) -> tuple[gpu.Survey | None, list[Saved], list[str]]:
    """Take the GPUs from the pod, then freeze it; once more if a CUDA process came in between.

    What the driver has staged is carried out of the processes before CRIU would do it. They are
    held still from there until they are frozen.
    """
    if not (found and found.all):
        return found, [], _freeze(tool, containers, thawed, held, timeline)
    left: list[str] = []
    for attempt in range(2):
        held.record("gpu", pids=found.running_pids)
        with huge_pages.enabled(wanted=config.huge_pages):
            staged = gpu.suspend(found, timeline)
        saved = [Saved(pid, f"{memory_dir}/{attempt}-{pid}", staged[pid]) for pid in staged]
        with ExitStack() as stack:
            if saved:
                perform = stack.enter_context(still.held(list(staged), tool.token))
                with timeline.phase("gpu memory", size_bytes=sum(one.size_bytes for one in saved)):
                    to_disk = order.after == "stopped"
                    saved = holds.take_memory(held, saved, perform, to_disk=to_disk)
            frozen = _freeze(tool, containers, thawed, held, timeline)
        left = gpu.not_suspended(containers)
        if not left:
            return found, saved, frozen
        holds.give_back_memory(held, saved)
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


def _check_room(
    staging_dir: str, containers: list[gpu.Container], chosen: dict[str, str], gpu_bytes: int
) -> None:
    """Refuse what surely fills the disk: memory, rw layers and volumes are more than it has."""
    copied = [overlay.upper_dir(f"{c.bundle_dir}/rootfs") for c in containers]
    pids = [pid for c in containers for pid in c.pids()]
    needed_bytes = gpu_bytes + sum(process.anonymous_bytes(pid) for pid in pids)
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


def _go_on(
    tool: Runc,
    found: gpu.Survey | None,
    frozen: list[str],
    thawed: list[str],
    timeline: log.Timeline,
) -> None:
    """Let the source run, but for what somebody else had paused."""
    with timeline.phase("thaw"):
        _thaw(tool, frozen)
    if found and found.all:
        with timeline.phase("gpu restore"):
            gpu.revive(found.driver, found.running_pids)
    for container_id in thawed:
        runc.pause(tool, container_id)


def _thaw(tool: Runc, frozen: list[str]) -> None:
    for container_id in frozen:
        runc.resume(tool, container_id)


def _manifest(
    order: Order,
    captured: tuple[str, ...],
    containers: list[manifests.Container],
    dumps: Dumps,
) -> Manifest:
    """Digest what lies in the staging directory and describe it."""
    with dumps.timeline.phase("digest") as entry:
        files = checkpoint_dir.contents(dumps.staging_dir, dumps.digests)
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
        options=manifests.Options(file_locks=True, ghost_limit_bytes=GHOST_LIMIT_BYTES),
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


def _running(pod: Pod) -> list[Container]:
    return [container for container in pod.containers if container.state == "running"]
