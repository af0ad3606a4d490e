"""Taking a checkpoint of a pod: freeze, dump, copy, seal, and the undoing of each.

Every step with an effect is recorded in the pod's journal before it is taken; undoing.py undoes it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from contextlib import ExitStack

from grit_runtime import log
from grit_runtime.checkpoint import (
    early_push,
    heaps,
    holds,
    preflight,
    sealing,
    standstill,
    undoing,
)
from grit_runtime.checkpoint.dumping import NEWER_FLAGS, Dumps, dump
from grit_runtime.checkpoint.order import Context, Order
from grit_runtime.dump import link_remaps
from grit_runtime.errors import (
    AlreadyExistsError,
    CommandError,
    GritError,
    NotDumpableError,
    NotFoundError,
    PodStateError,
    SourceLostError,
    one_line,
    reason,
)
from grit_runtime.host import criu, process, procfs, records, runc
from grit_runtime.host.descriptor import closing_fd
from grit_runtime.model import checkpoint_steps as steps
from grit_runtime.model import connections, losses, outcomes
from grit_runtime.model import manifest as manifests
from grit_runtime.model.annotations import checkpoint_name
from grit_runtime.model.outcomes import Outcome
from grit_runtime.nvidia import suspension
from grit_runtime.pod import network, running_container, volumes
from grit_runtime.restore import checks
from grit_runtime.startup.named import NamedTuple
from grit_runtime.tasks import readback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from grit_runtime.config import Config
    from grit_runtime.host.runc import Runc
    from grit_runtime.model.manifest import Manifest
    from grit_runtime.pod.running_container import RunningContainer
    from grit_runtime.restore.checks import Case


class Taken(NamedTuple):
    """What was dumped, and what is needed to leave its source as ordered."""

    context: Context
    manifest: Manifest
    lost: str  # why the source could not go on, if it was to
    suspended: standstill.Suspended
    early: Callable[[], str]  # memory on its way to a store, as long as *beside* is open
    beside: ExitStack


_LOST = SourceLostError.reason

# What the kernel, runc or CRIU may answer when a process is no more.
_OF_NOTHING = (OSError, NotFoundError, CommandError)


class Result(NamedTuple):
    """A sealed checkpoint."""

    path: str
    manifest: Manifest
    begun: str  # what was sent to the order's store already, for the push


def checkpoint(order: Order, config: Config) -> Result:
    """Take the checkpoint; on any failure the source runs as before and nothing is left.

    Blocks for as long as the dump takes. GritError says what went wrong; either way is recorded.
    """
    timeline, token = log.Timeline(), process.new_token()
    outcome = _outcome(order, config, outcomes.FAILED, "interrupted")
    try:
        with log.about(pod=f"{order.pod.namespace}/{order.pod.name}", attempt=token):
            taken = _take_or_undo(order, config, timeline, token)
            outcome = outcome._replace(
                outcome=outcomes.SEALED,
                reason="",
                manifest_sha256=hashlib.sha256(manifests.dump(taken.manifest)).hexdigest(),
                warnings=tuple(map(losses.line, taken.manifest.warnings)),
            )
            if lost := _leave_source(taken):
                outcome = outcome._replace(outcome=outcomes.LOST, reason=lost, error=_LOST)
    except BaseException as error:
        if isinstance(error, SourceLostError):
            outcome = outcome._replace(outcome=outcomes.LOST)
        if outcome.outcome != outcomes.SEALED:
            text = one_line(error) if isinstance(error, GritError | OSError) else "interrupted"
            outcome = outcome._replace(reason=text, error=reason(error))
        raise
    finally:
        records.append(outcome._replace(time=log.rfc3339(), timeline=tuple(timeline.phases)))
    result = _finish(taken)
    if lost:
        raise SourceLostError(lost)
    return result


def _take_or_undo(order: Order, config: Config, timeline: log.Timeline, token: str) -> Taken:
    final_dir = _preflight(order, config)
    if order.after == "frozen":
        holds.warn(order.pod)
    tool = runc.installed(config.runc_root, token)
    held = holds.begin(order.pod)
    running: tuple[RunningContainer, ...] = ()
    try:
        outcome = _outcome(order, config, outcomes.FAILED, "the engine was killed")
        held.record(steps.Begin(tool.token, config.runc_root, outcome))
        with ExitStack() as beside:
            with suspension.opened_driver(tool.token) as driver:
                running = _running(tool, order)
                context = Context(order, config, final_dir, tool, driver, held, timeline, running)
                taken = _take(context, beside)
            _seal(context, taken.manifest)
            return taken._replace(beside=beside.pop_all())
    except BaseException as error:
        ended = [c.name for c in running if procfs.is_ending(c.init_pid)]
        undoing.undo(held)
        if ended and isinstance(error, _OF_NOTHING):
            raise _ended_meanwhile(order, ended[0], error) from error
        raise


def _leave_source(taken: Taken) -> str:
    """Leave the source as ordered, with its memory; why it is lost, if it is.

    Whatever fails or interrupts this, what was ordered is completed: there is no way back.
    """
    context, lost = taken.context, taken.lost
    try:
        if context.order.after == "frozen":
            lost = _go_on(context, taken.suspended)
        if context.order.after == "stopped":
            with context.timeline.phase("stop"):
                for container in context.containers:
                    runc.stop(context.tool, container.id)
    except BaseException:
        taken.beside.close()
        undoing.undo(context.journal)
        raise
    if not lost:
        return ""
    path = context.final_dir
    return f"{lost}; its checkpoint {path} is sealed: restore that, and delete the pod"


def _finish(taken: Taken) -> Result:
    """Wait until memory is sent that is on its way; nothing is left but the checkpoint."""
    context = taken.context
    is_held = context.order.after == "frozen"
    shutil.rmtree(context.work_dir)
    if is_held:  # others may have the pod from now on
        context.journal.close()
    try:
        with taken.beside:
            begun = taken.early()
    finally:
        for path in (context.staging_dir, context.memory_dir):
            shutil.rmtree(path, ignore_errors=True)
    if not is_held:
        undoing.end(context.journal)
    return Result(context.final_dir, taken.manifest, begun)


def _running(tool: Runc, order: Order) -> tuple[RunningContainer, ...]:
    """The running containers as runc knows them."""
    found = []
    for container in order.pod.running:
        try:
            found.append(running_container.read(tool, container.name, container.id, order.decided))
        except _OF_NOTHING as error:
            known = [
                os.path.exists(f"{tool.root}/{i}") for i in (order.pod.sandbox_id, container.id)
            ]
            if known == [True, False]:
                raise _ended_meanwhile(order, container.name, error) from error
            raise
    return tuple(found)


def _ended_meanwhile(order: Order, container: str, error: Exception) -> PodStateError:
    return PodStateError(
        f"pod {order.pod.namespace}/{order.pod.name}: container {container} has ended while "
        f"its checkpoint was taken, expected it to run ({one_line(error)}); take it again"
    )


def _preflight(order: Order, config: Config) -> str:
    """The directory that the checkpoint will get; refuses what cannot succeed."""
    pod = order.pod
    name = f"pod {pod.namespace}/{pod.name}"
    if order.after == "stopped" and pod.is_kubelets and not order.pod_is_going:
        raise PodStateError(
            f"{name}: kubelet restarts what stops in it; delete the pod and say --pod-is-going, "
            "or use --after frozen"
        )
    for container in pod.containers:
        if container.state not in ("running", "exited"):
            raise PodStateError(
                f"{name}: container {container.name} is {container.state}, expected running"
            )
    if not pod.running:
        raise PodStateError(f"{name}: no container is running")
    if config.signing_key:
        from grit_runtime.files import signature

        signature.sign(b"", config.signing_key)  # an invalid key fails before the pod is stopped
    criu.prefer(config.criu)
    final_dir = f"{config.checkpoint_root}/{pod.namespace}/{checkpoint_name(order.name)}"
    if os.path.lexists(final_dir) and not order.replace:
        raise AlreadyExistsError(f"checkpoint {final_dir} exists; choose another name or --replace")
    return final_dir


def _take(context: Context, beside: ExitStack) -> Taken:
    """Dump the pod; *beside* that, its memory is on its way to a store."""
    for path in (context.staging_dir, context.memory_dir, context.work_dir):
        context.journal.record(steps.Directory(path))
        os.makedirs(path, mode=0o700)
    looked = preflight.look(context)
    chosen = preflight.choose_volumes(context)  # and again when nothing changes any more
    thawed = standstill.thaw_for_driver(context)
    survey = suspension.survey(context.driver, context.containers) if context.driver else None
    if survey and survey.all:
        suspension.refuse_unrestorable(survey, context.containers)
    preflight.check_room(context, chosen, gpu_bytes=survey.size_bytes if survey else 0)
    begin = time.monotonic()
    suspended = heaps.move_out(context, standstill.suspend(context, survey, thawed))
    early = beside.enter_context(early_push.begun(context, suspended.saved))
    preflight.tell_losses(context, suspended.frozen.losses)
    _silence(context, looked.tcp)
    manifest, lost = _dump(context, looked, suspended, begin)
    return Taken(context, manifest, lost, suspended, early, beside)


def _dump(
    context: Context, looked: preflight.Looked, suspended: standstill.Suspended, begin: float
) -> tuple[Manifest, str]:
    """Dump a pod that has stood since *begin*, and let it go on if ordered; why it could not."""
    dumps = _dumps(context, looked, suspended)
    dumped = [dump(dumps, container) for container in context.order.pod.running]
    with context.timeline.phase("volumes"):
        captured = volumes.save(dumps.chosen, context.staging_dir)
    link_remaps.drop(step for step in context.journal.steps() if isinstance(step, steps.Link))
    lost = "" if context.order.after == "frozen" else _go_on(context, suspended)
    if context.order.after == "running":
        context.timeline.add("paused", seconds=time.monotonic() - begin)

    with context.timeline.phase("check"):
        described = [*map(_checked, dumped), *sealing.ended(dumps)]
    with sealing.written_back(context):
        return sealing.manifest(dumps, looked, suspended, captured, described), lost


def _seal(context: Context, manifest: Manifest) -> None:
    """Seal the checkpoint; when this returns it is final."""
    with context.timeline.phase("seal"):
        if context.order.after == "frozen":
            data = manifests.dump(manifest)
            holds.keep(context.order.pod, context.tool, context.journal, context.final_dir, data)
        sealing.seal(context, manifest)
        context.journal.record(undoing.COMMITTED[context.order.after])


def _go_on(context: Context, suspended: standstill.Suspended) -> str:
    """As `standstill.go_on`; why the source is lost: what was dumped is all that is left of it."""
    try:
        standstill.go_on(context, suspended)
    except SourceLostError as error:
        return one_line(error)
    return ""


def _dumps(context: Context, looked: preflight.Looked, suspended: standstill.Suspended) -> Dumps:
    """What the dumps of a pod that stands still have in common."""
    containers, survey = context.containers, suspended.survey
    # Asked once: a process that is killed from now on is dumped with the memory that it had.
    numbers = {c.name: procfs.container_pids(c.pids()) for c in containers}
    known = {pid for own in numbers.values() for pid in own}
    if gone := [file.pid for file in suspended.saved if file.pid not in known]:
        raise NotDumpableError(f"process {gone[0]} has ended while its memory was moved")
    return Dumps(
        context=context,
        flags=runc.read_flags(looked.flags, NEWER_FLAGS),
        containers={c.id: c for c in containers},
        chosen=preflight.choose_volumes(context),
        lines=looked.able.lines,
        losses=looked.able.losses + looked.asked.losses + suspended.frozen.losses,
        facts={c.name: readback.read_facts(c, looked.asked) for c in containers},
        tcp=looked.tcp,
        gpus={c.name: suspension.describe(survey, c) for c in containers} if survey else {},
        saved=suspended.saved,
        numbers=numbers,
        digests={},
    )


def _checked(dumped: Case) -> manifests.Container:
    """The container, if a restore would take what was dumped of it."""
    with (
        closing_fd(dumped.checkpoint_fd),
        closing_fd(dumped.images_fd),
        checks.of_source(dumped.container.name),
    ):
        checks.check(dumped)
    return dumped.container


def _silence(context: Context, tcp: dict[str, connections.DumpOptions]) -> None:
    """Keep a source that is to end from closing its connections, which its peers go on using."""
    if context.order.after == "running" or not any(options.has_peers for options in tcp.values()):
        return
    namespaces = context.containers[0].spec["linux"]["namespaces"]
    for path in [ns["path"] for ns in namespaces if ns["type"] == "network" and ns.get("path")]:
        context.journal.record(steps.Silence(path))
        network.block_egress(path)


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
