"""Taking an installation of grit back."""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path

from grit_runtime import config, paths
from grit_runtime.errors import CommandError, FailedPreconditionError, NotFoundError
from grit_runtime.host import procfs
from grit_runtime.installation import changes, containerd, handler, live, services
from grit_runtime.model import handlers
from grit_runtime.model.installation_steps import Directory, Leaving
from grit_runtime.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from grit_runtime.host.journal import Journal
    from grit_runtime.installation.changes import Made
    from grit_runtime.installation.containerd import Daemon
    from grit_runtime.model.installation_steps import InstallationStep

    Tell = Callable[[str], None]

_THEN = "uninstall"


def uninstall(*, restart: bool, drain: bool, purge: bool, tell: Tell) -> None:
    """Have every file as it was before `install`.

    containerd's come first; the programs of the handler only go once no containerd knows of it and
    no pod has it. With *drain*, pods that still do are stopped. Blocks for seconds.
    """
    if purge:
        _refuse_loss()
        live.refuse_under_way(_THEN)
    with changes.opened() as held:
        if held.steps():
            daemon = _leave(held, drain=drain, tell=tell)
            if daemon is not None:
                _let_go(daemon, restart=restart, drain=drain, tell=tell)
            _take_rest_back(daemon, held, tell)
        else:
            tell("grit install has written nothing here, or all of it is taken back")
    if purge:
        for directory in _of_grit():
            shutil.rmtree(directory, ignore_errors=True)


def _leave(held: Journal[InstallationStep], *, drain: bool, tell: Tell) -> Daemon | None:
    """Take back what containerd reads; the containerd that runs, if one does."""
    live.refuse_under_way(_THEN)
    done = changes.standing(held.steps())
    daemon = _running(tell)
    if not drain or daemon is None:
        live.refuse_pods(daemon)
    if daemon is not None:
        _refuse_damage(daemon, done)
    if not changes.is_leaving(held.steps()):
        held.record(Leaving(VERSION))
    for step in reversed(done.values()):
        if getattr(step, "read_by", "") == changes.CONTAINERD:
            changes.take_back(step, held)
            tell(f"as before: {step.path}")
    return daemon


def _running(tell: Tell) -> Daemon | None:
    """The containerd to ask; None if none runs, perhaps for what grit has written."""
    try:
        return containerd.find()
    except NotFoundError as error:
        tell(f"{error}; what grit has written is taken back without it")
        return None


def _let_go(daemon: Daemon, *, restart: bool, drain: bool, tell: Tell) -> None:
    """See that containerd has read that there is no handler any more, and no pod has it."""
    if restart and not live.has(daemon, None):
        daemon = live.restarted(daemon)
    if not live.has(daemon, None):
        raise FailedPreconditionError(
            f"containerd's files are as they were before grit install, but the containerd that "
            f"runs still has the handler {handlers.NAME}: {live.how_to_restart(daemon)} (pods that "
            "run are not touched), then run grit uninstall again"
        )
    if drain:
        for sandbox_id, name in live.pods(daemon).items():
            live.stop(daemon, sandbox_id)
            tell(f"stopped: {name}")


def _take_rest_back(daemon: Daemon | None, held: Journal[InstallationStep], tell: Tell) -> None:
    """Take back what pods and operations need, once there are none."""
    live.refuse_pods(daemon)
    live.refuse_under_way(_THEN)
    done = changes.standing(held.steps())
    services.stop(services.among(done))
    for step in reversed(done.values()):
        changes.take_back(step, held)
        if not isinstance(step, Directory):
            tell(f"as before: {step.path}")
    services.read_anew()
    _end_zygote()
    shutil.rmtree(paths.RUN_DIR, ignore_errors=True)
    changes.end(held)


def _refuse_damage(daemon: Daemon, done: Mapping[str, Made]) -> None:
    """See that containerd starts without the handler, and with all else as it is."""
    try:
        before = containerd.effective(daemon, {})
    except CommandError:
        return  # it would not start as it is either: that may be why grit is taken back
    try:
        after = handler.bare(daemon, done)
    except CommandError as error:
        raise FailedPreconditionError(
            f"without grit's files containerd would not start: {error}; see that nothing imports "
            "them by name"
        ) from None
    different = handlers.differences(before, after, None)
    if different:
        raise FailedPreconditionError(
            f"without grit's files more than the handler would go: {'; '.join(different[:3])}; "
            "write it to a file of your own"
        )


def _of_grit() -> tuple[str, ...]:
    """What is left of grit once its installation is taken back: state, logs, what it was told."""
    return paths.STATE_DIR, paths.LOG_DIR, os.path.dirname(config.PATH)


def _refuse_loss() -> None:
    """FailedPreconditionError if checkpoints lie where --purge removes all."""
    root = config.load().checkpoint_root
    there = os.path.realpath(root)
    if not os.path.isdir(there) or not os.listdir(there):
        return
    for directory in _of_grit():
        if f"{there}/".startswith(f"{os.path.realpath(directory)}/"):
            raise FailedPreconditionError(
                f"checkpoint_root {root} lies in {directory}, which --purge removes, and is not "
                "empty: move what is in it elsewhere or delete it, or leave --purge out"
            )


def _end_zygote() -> None:
    """End what new shims are forked from, where it is no unit of systemd."""
    with suppress(FileNotFoundError, ProcessLookupError):
        pid = int(Path(f"{paths.RUN_DIR}/zygote.pid").read_text("utf-8").split()[0])
        if procfs.text(pid, "comm") == "grit-zygote\n":
            os.kill(pid, signal.SIGTERM)
