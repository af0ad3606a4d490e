"""Restoring a container from a checkpoint instead of starting it.

Called at `create`, with the bundle that containerd made for the new pod. There are two sources: the
live pod's config.json, which is trusted, and the checkpoint, which is not.

This module decides what becomes of the container: which checkpoint is meant, whether it is whole,
what is reported and left behind when something fails. `stages` does the rest. Loading it,
with all that knows CRIU's images, takes a third of a second on a slow node, so that is done while
digests are compared.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from enum import Enum

from grit_runtime import log
from grit_runtime.errors import (
    FailedPreconditionError,
    GritError,
    ImageError,
    NotArrivedError,
    PodStateError,
    VolumeError,
    one_line,
    reason,
)
from grit_runtime.files import checkpoint_dir, confine, verified
from grit_runtime.host import config_json, criu, journal, namespaces, overlay, process, records
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import outcomes
from grit_runtime.model.outcomes import Outcome
from grit_runtime.model.restore_steps import STEPS, Begin, Claim, Copy, Log, Restored, RwLayer
from grit_runtime.model.steps import has, last
from grit_runtime.pod import loopback
from grit_runtime.restore import attempts, clones, gate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from grit_runtime.files.checkpoint_dir import Checkpoint
    from grit_runtime.host.journal import Journal
    from grit_runtime.model.manifest import Container, Manifest
    from grit_runtime.model.restore_steps import Step
    from grit_runtime.nvidia.gpu_driver import Driver
    from grit_runtime.restore.attempts import Request

_COPY_LIMIT_ENTRIES = 100_000


class End(Enum):
    """What has become of a container that was to be restored."""

    RESTORED = outcomes.RESTORED
    COLD = outcomes.COLD  # runc is to start it from its image
    SKIPPED = outcomes.SKIPPED  # runc is to start it, and it exits at once


def restore(request: Request) -> End:
    """Restore the container, or return what becomes of it instead.

    Blocks until the container runs. When it raises, nothing of the attempt is left: no process,
    mount or file. The outcome is logged and recorded, with the reason.
    """
    begun = _outcome(request, outcomes.FAILED, "")
    with log.about(**outcomes.whose(begun)):
        return _restore(request, begun)


def _restore(request: Request, begun: Outcome) -> End:
    attempts.sweep(request.pod_dir, starting=request.name)
    attempt = journal.begin(f"{request.attempt_dir}/{attempts.JOURNAL}", STEPS)
    attempt.record(Begin(begun))
    timeline = log.Timeline()
    try:
        instead = _attempt(request, attempt, timeline)
    except (GritError, OSError) as error:
        _start_cold_or_raise(request, attempt, error, timeline)
        return End.COLD
    except BaseException as error:
        attempts.undo(attempt)
        failed = _outcome(request, outcomes.FAILED, f"{type(error).__name__}: {error}")
        phases = tuple(timeline.phases)
        attempts.report(failed._replace(error=reason(error), timeline=phases))
        raise
    if instead is None:
        attempt.close()
        return End.RESTORED
    attempts.undo(attempt)
    end = End(instead.outcome)
    if end is End.SKIPPED:
        from grit_runtime.pod import bundle  # knows the checks' view of a pod

        bundle.exit_at_once(request.bundle_dir, request.spec)
    attempts.report(instead)
    return end


def _start_cold_or_raise(
    request: Request, attempt: Journal[Step], error: GritError | OSError, timeline: log.Timeline
) -> None:
    """Undo a failed attempt, and raise *error* unless the container may start cold instead."""
    text = one_line(error)
    # What is still on its way is not lost: the next start may find it.
    may_be_cold = request.order.cold_on_failure and not isinstance(error, NotArrivedError)
    with journal.locked(request.pod_dir):
        steps = attempt.steps()
        claim = last(steps, Claim)
        failed = _outcome(request, outcomes.FAILED, text)._replace(
            manifest_sha256=claim.manifest_sha256 if claim else "",
            error=reason(error),
            timeline=tuple(timeline.phases),
        )
        try:
            beside = _restored_beside(request) if may_be_cold else None
        finally:  # whether or not the pod's records can be read
            loopback.release(request.pod_dir)
            attempts.undo(attempt)
        if may_be_cold and beside is None:
            if has(steps, RwLayer):
                _clear(request, steps)
            attempts.report(failed._replace(outcome=outcomes.COLD, binds=True))
            return
    if may_be_cold:
        text += f"; not started cold, because container {beside} of the pod was restored"
        error = FailedPreconditionError(text)
    attempts.report(failed._replace(reason=text))
    raise error


def _restored_beside(request: Request) -> str | None:
    """A container of this sandbox that is restored, whether or not it was started since."""
    for name in _restored(request.pod_dir):
        return name
    identity = request.order.identity
    if identity is None:
        return None
    return outcomes.restored_container(_past(request), identity.sandbox_id)


def _restored(pod_dir: str) -> set[str]:
    """The containers of a sandbox that are restored, whether or not they were started since."""
    names = set()
    for path in journal.beneath(pod_dir, f"*/{attempts.JOURNAL}"):
        if restored := last(journal.read(path, STEPS), Restored):
            names.add(restored.outcome.container)
    return names


def _clear(request: Request, steps: list[Step]) -> None:
    """Make the bundle what containerd had made, after the attempt was undone."""
    from grit_runtime.pod import bundle

    overlay.empty(bundle.rootfs(request.bundle_dir, request.spec))
    config_json.write(request.bundle_dir, request.spec)
    if carried := last(steps, Log):
        os.truncate(carried.path, 0)


def _attempt(request: Request, attempt: Journal[Step], timeline: log.Timeline) -> Outcome | None:
    """Restore the container and return None, or return what is to become of it instead."""
    past_reason = _past_reason(request)
    if past_reason:
        return _outcome(request, outcomes.COLD, past_reason)
    request = gate.passed(request, timeline)
    with ExitStack() as stack:
        checkpoint_fd, sealed = _open_checkpoint(request, attempt, stack, timeline)
        _require_pinned(request, sealed)
        if request.trusted_keys:
            checkpoint_dir.check_signature(
                checkpoint_fd, request.checkpoint_path, request.trusted_keys
            )
        container = _container(sealed.manifest, request)
        if container is None:
            reason = "the checkpoint does not list this container"
            return _outcome(request, outcomes.COLD, reason)
        if container.state != "running":
            return _ended(request, container)
        _require_images(request, sealed, container)
        if request.order.identity:
            clones.claim(
                *(attempt, request.runc, request.order.identity, sealed, request.checkpoint_path),
                allowed=request.order.is_clone,
            )

        criu.prefer(request.criu)
        # What these are asked they answer while digests are compared.
        criu_version = criu.start_version(request.runc.token)
        driver = _gpu_driver(request, container)
        with timeline.phase("verify", size_bytes=sealed.manifest.size_bytes) as entry:
            pod, is_recorded = _verify(checkpoint_fd, sealed, request, container)
            if is_recorded:
                entry["record"] = "unchanged"
        from grit_runtime.restore import stages  # loaded while digests were compared

        ready = stages.Verified(checkpoint_fd, sealed, container, pod, criu_version, driver)
        warnings = stages.bring_back(request, attempt, ready, timeline)
        attempts.remove(request.copy_dir)
        timeline.add("all", seconds=timeline.elapsed_s)
        _commit(request, attempt, sealed, timeline, warnings)
        return None


def _ended(request: Request, container: Container) -> Outcome:
    """Whether a container that had ended before the checkpoint runs again or is skipped."""
    if container.exit_code != 0 or not request.order.skip_completed:
        reason = f"it had exited {container.exit_code} before the checkpoint, and runs again"
        return _outcome(request, outcomes.COLD, reason)
    if container.uncaptured:
        raise VolumeError(
            f"container {container.name} cannot be skipped: the checkpoint does not hold its "
            f"writable volume {container.uncaptured[0]}; without grit.dev/completed it runs again"
        )
    return _outcome(request, outcomes.SKIPPED, "")


def _require_images(request: Request, sealed: Checkpoint, container: Container) -> None:
    images_path = f"{container.name}/checkpoint/"
    if not any(file.path.startswith(images_path) for file in sealed.manifest.files):
        raise ImageError(
            f"checkpoint {request.checkpoint_path} lists container {container.name} as running "
            "but holds no images of it; take it again"
        )


def _require_pinned(request: Request, sealed: Checkpoint) -> None:
    pinned = request.order.manifest_sha256
    if pinned and (not sealed.is_verifiable or sealed.sha256 != pinned):
        actual = f"sha256:{sealed.sha256}" if sealed.is_verifiable else "none"
        raise ImageError(
            f"checkpoint {request.checkpoint_path} is not the one that is meant: its manifest is "
            f"{actual}, expected sha256:{pinned}; copy that one here"
        )


def _past_reason(request: Request) -> str | None:
    """The reason, from the pod's earlier outcomes, why its container has to start cold, if any."""
    past = _past(request)
    if not past:
        return None
    try:
        named = checkpoint_dir.open_named(request.checkpoint_root, request.order.path)
        with closing_fd(named) as dir_fd:
            sha256 = checkpoint_dir.read(dir_fd, request.checkpoint_path).sha256
    except (GritError, OSError):
        sha256 = ""  # a checkpoint may be removed once it is restored
    now = _outcome(request, outcomes.RESTORED, "")._replace(manifest_sha256=sha256)
    return outcomes.cold_reason(past, now)


def _commit(
    request: Request,
    attempt: Journal[Step],
    sealed: Checkpoint,
    timeline: log.Timeline,
    warnings: tuple[str, ...],
) -> None:
    """Record the container as restored, unless another of the pod was started cold meanwhile."""
    outcome = _outcome(request, outcomes.RESTORED, "")._replace(
        manifest_sha256=sealed.sha256,
        timeline=tuple(timeline.phases),
        warnings=warnings,
    )
    with journal.locked(request.pod_dir):
        for past in _past(request):
            if past.binds:
                raise PodStateError(
                    f"container {past.container} of the pod was started cold at {past.time}"
                )
        attempt.record(Restored(outcome))
        restored = _restored(request.pod_dir)
        if request.order.beside_living or {c.name for c in sealed.manifest.running} <= restored:
            loopback.release(request.pod_dir)


def _open_checkpoint(
    request: Request, attempt: Journal[Step], stack: ExitStack, timeline: log.Timeline
) -> tuple[int, Checkpoint]:
    """The checkpoint's directory, which only root can change and *stack* closes, and what it is."""
    root, names = request.checkpoint_root, request.order.path
    if request.arriving:
        early = checkpoint_dir.open_arriving(root, names[0], request.arriving)
        if early is not None:
            dir_fd = stack.enter_context(closing_fd(early))
            return dir_fd, checkpoint_dir.read_manifest(dir_fd, request.checkpoint_path)
        gate.memory_is_here(request, timeline)
    archive_fd = checkpoint_dir.open_archive(root, names)
    if archive_fd is not None:
        attempt.record(Copy(request.copy_dir))
        try:
            return checkpoint_dir.unpack(archive_fd, request.copy_dir, request.name, stack)
        except ImageError as error:
            raise ImageError(f"checkpoint {request.checkpoint_path}: {error}") from error
    dir_fd = stack.enter_context(closing_fd(checkpoint_dir.open_named(root, names)))
    if not checkpoint_dir.is_private(root, names, dir_fd):
        dir_fd = stack.enter_context(closing_fd(_copied(request, attempt, dir_fd)))
    return dir_fd, checkpoint_dir.read(dir_fd, request.checkpoint_path)


def _copied(request: Request, attempt: Journal[Step], dir_fd: int) -> int:
    log.warning(
        "others than root can write to the checkpoint: copying", path=request.checkpoint_path
    )
    attempt.record(Copy(request.copy_dir))
    os.makedirs(request.copy_dir, mode=0o700)
    with closing_fd(confine.open_dir(request.copy_dir)) as copy_fd:
        room = os.statvfs(copy_fd)
        confine.copy_tree(
            dir_fd,
            copy_fd,
            max_entries=_COPY_LIMIT_ENTRIES,
            max_bytes=room.f_bavail * room.f_frsize,
        )
    return confine.open_dir(request.copy_dir)


def _container(manifest: Manifest, request: Request) -> Container | None:
    """The container to restore; the checkpoint's only one if runc was called by hand."""
    identity = request.order.identity
    if identity is None:
        if len(manifest.running) != 1:
            raise FailedPreconditionError(
                f"checkpoint {request.checkpoint_path} holds {len(manifest.running)} containers, "
                "expected one where no pod names the container"
            )
        return manifest.running[0]
    return next((c for c in manifest.containers if c.name == identity.container), None)


def _verify(
    checkpoint_fd: int, sealed: Checkpoint, request: Request, container: Container
) -> tuple[namespaces.PodNamespaces, bool]:
    """Compare the checkpoint with its manifest, except memory that is read only once.

    Nothing is read if it is recorded as verified and has not changed since. The child process that
    does so also reads the pod's own namespaces; these are returned, and whether it was recorded.
    """
    unread = checkpoint_dir.moved_memory(sealed, container)
    joined = {ns["type"]: ns.get("path") for ns in request.spec["linux"]["namespaces"]}

    def look() -> tuple[list[str], bool, namespaces.PodNamespaces]:
        wrong, is_recorded = [], False
        if sealed.is_verifiable:
            path = request.checkpoint_path
            is_recorded = verified.holds(checkpoint_fd, path, sealed.sha256)
            left_out = {file.path for file in sealed.manifest.files} if is_recorded else unread
            wrong = checkpoint_dir.differences(checkpoint_fd, sealed.manifest, left_out)
        pod = namespaces.join_and_read(joined.get("uts"), joined.get("ipc"))
        return wrong, is_recorded, pod

    if not sealed.is_verifiable:
        log.warning("no manifest: its files cannot be verified", path=request.checkpoint_path)
    with process.beside(look) as seen:
        import grit_runtime.restore.stages  # noqa: F401  takes longer than to read 10 MB

        wrong, is_recorded, pod = seen()
    checkpoint_dir.refuse(request.checkpoint_path, wrong)
    return namespaces.PodNamespaces(*pod), is_recorded


def _gpu_driver(request: Request, container: Container) -> Driver | None:
    """The driver, which loads while digests are compared; None if it is not needed."""
    if not container.cuda:
        return None
    from grit_runtime.nvidia import suspension  # a pod without GPUs does not pay for it

    return suspension.open_driver(request.runc.token, processes=len(container.cuda))


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
        container=request.name,
        container_id=request.container_id,
        checkpoint=request.checkpoint_path,
        binds=binds,
    )


def _past(request: Request) -> tuple[Outcome, ...]:
    identity = request.order.identity
    if identity is None or request.order.is_second_life:
        return ()
    return records.of_pod(identity.pod_uid)
