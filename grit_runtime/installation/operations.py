"""Installing grit on a node, bringing an installation up to date, and taking it back."""

from __future__ import annotations

import difflib
import os
import shutil
import signal
import time
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from grit_runtime import config, paths
from grit_runtime.errors import (
    CommandError,
    FailedPreconditionError,
    HeldError,
    NotFoundError,
    PodStateError,
)
from grit_runtime.host import journal, process, procfs
from grit_runtime.host.containerd import Containerd
from grit_runtime.installation import (
    changes,
    containerd,
    handler,
    self_test,
    services,
    wanted,
)
from grit_runtime.model import handlers
from grit_runtime.model.installation_steps import Choice, Directory
from grit_runtime.pod import held_pods
from grit_runtime.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    from grit_runtime.host.journal import Journal
    from grit_runtime.installation.changes import Change, Made
    from grit_runtime.installation.containerd import Daemon
    from grit_runtime.installation.wanted import Wanted
    from grit_runtime.model.handlers import Table
    from grit_runtime.model.installation_steps import InstallationStep

    Tell = Callable[[str], None]

_ANSWERS_WITHIN_S = 60
_ZYGOTE = f"{paths.RUN_DIR}/zygote.pid"


def show(choice: Choice) -> Iterator[str]:
    """What `install` would change, as a difference for each file; changes nothing."""
    daemon = containerd.find()
    wants = wanted.look(daemon, choice, changes.standing(changes.recorded()))
    yield _about(daemon, wants)
    yield from _shown(wants.changes, changes.standing(changes.recorded()), whole=True)


def install(choice: Choice, *, restart: bool, tell: Tell) -> None:
    """Have grit on this node as *choice* says, and nothing of what an earlier one said besides.

    With *restart*, containerd is restarted if it has to read its files anew. Blocks for seconds.
    """
    with _held() as held:
        daemon = containerd.find()
        done = changes.standing(held.steps())
        wants = wanted.look(daemon, choice, done)
        tell(_about(daemon, wants))
        for text in _shown(wants.changes, done, whole=False):
            tell(text)
        services.stop([unit for unit in _units(done) if unit not in wants.units])
        readers = _make(choice, wants, held)
        if changes.SYSTEMD in readers:
            services.read_anew()
        services.start(wants.units)
        if not _has(daemon, wants.handler):
            if not restart:
                tell(
                    f"containerd has not read its configuration yet: {_how_to_restart(daemon)} "
                    "(pods that run are not touched), then run grit install again for the "
                    "self-test"
                )
                return
            daemon = _restart(daemon)
            if not _has(daemon, wants.handler):
                raise FailedPreconditionError(
                    f"containerd at {daemon.address} was restarted and has no handler "
                    f"{handlers.NAME} as it was written; look at what makes {daemon.config}"
                )
        took_s = self_test.run(daemon, wants)
        tell(f"self-test: a container was checkpointed and restored ({took_s:.1f} s in all)")


def upgrade(*, restart: bool, tell: Tell) -> None:
    """Bring launchers, units and the handler to this version of grit, as they were asked for."""
    choice = changes.choice(changes.recorded())
    if choice is None:
        raise NotFoundError("this node has no installation to upgrade; run grit install")
    under_way = [*journal.checkpoints(), *(hold.name for hold in held_pods.every())]
    if under_way:
        raise HeldError(
            f"{', '.join(under_way)}: under way or held by the version that runs; wait for it, or "
            "resume it, then upgrade"
        )
    install(choice._replace(version=VERSION), restart=restart, tell=tell)


def uninstall(*, restart: bool, drain: bool, purge: bool, tell: Tell) -> None:
    """Have every file as it was before `install`.

    containerd's come first; the programs of the handler only go once no containerd knows of it and
    no pod has it. With *drain*, pods that still do are stopped. Blocks for seconds.
    """
    with _held() as held:
        if not held.steps():
            tell("grit install has written nothing here, or all of it is taken back")
            return
        done = changes.standing(held.steps())
        daemon = containerd.find()
        if not drain:
            _refuse_pods(daemon)
        _refuse_damage(daemon, done)
        for step in reversed(done.values()):
            if getattr(step, "read_by", "") == changes.CONTAINERD:
                changes.take_back(step, held)
                tell(f"as before: {step.path}")
        daemon = _have_forgotten(daemon, restart=restart)
        if drain:
            _stop_pods(daemon, tell)
        _refuse_pods(daemon)
        services.stop(_units(done))
        for step in reversed(changes.standing(held.steps()).values()):
            changes.take_back(step, held)
            if not isinstance(step, Directory):
                tell(f"as before: {step.path}")
        services.read_anew()
        _end_zygote()
        shutil.rmtree(paths.RUN_DIR, ignore_errors=True)
        changes.end(held)
        if purge:
            for directory in (paths.STATE_DIR, paths.LOG_DIR, os.path.dirname(config.PATH)):
                shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _held() -> Iterator[Journal[InstallationStep]]:
    """The journal, for one call; it ends with the call if nothing is recorded in it."""
    held = changes.hold()
    try:
        yield held
    finally:
        if os.path.exists(held.path):
            if held.steps():
                held.close()
            else:
                changes.end(held)


def _make(choice: Choice, wants: Wanted, held: Journal[InstallationStep]) -> list[str]:
    """Make the changes; a first installation that fails is taken back."""
    is_first = not held.steps()
    try:
        if choice not in held.steps()[-1:]:
            held.record(choice)
        changes.make_directory(config.load().checkpoint_root, held, mode=0o700)
        return changes.make(wants.changes, held)
    except BaseException:
        if is_first:
            for step in reversed(changes.standing(held.steps()).values()):
                changes.take_back(step, held)
            changes.end(held)
        raise


def _about(daemon: Daemon, wants: Wanted) -> str:
    return (
        f"containerd: process {daemon.pid}, {daemon.program}, configured by {daemon.config}; "
        f"grit hands on to {wants.runc}"
    )


def _shown(wants: Mapping[str, Change], done: Mapping[str, Made], *, whole: bool) -> Iterator[str]:
    """The differences of files that others write too, and, with *whole*, of all others."""
    for path, step in done.items():
        if path not in wants and not isinstance(step, Directory):
            yield f"as before: {path}"
    for path, change in wants.items():
        if path in done and changes.is_made(path, change):
            continue
        if whole or isinstance(change, changes.Block):
            yield _difference(path, change)
        else:
            yield f"written: {path}"


def _difference(path: str, change: Change) -> str:
    old = Path(path).read_text("utf-8") if os.path.isfile(path) else ""
    new = changes.content(path, change).decode()
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), path if old else os.devnull, path, lineterm=""
    )
    return "\n".join(lines)


def _units(done: Mapping[str, Made]) -> list[str]:
    return [
        os.path.basename(path)
        for path, step in done.items()
        if os.path.dirname(path) == services.UNIT_DIR and not isinstance(step, Directory)
    ]


def _has(daemon: Daemon, table: Table | None) -> bool:
    """Whether the containerd that runs has the handler as in *table*; None: has none of it."""
    live = _ask(daemon, Containerd.handlers).get(handlers.NAME)
    if table is None or live is None:
        return live is table
    return handlers.is_live(table, live)


def _restart(daemon: Daemon) -> Daemon:
    """Restart containerd and wait for it; its containers run on."""
    if not daemon.unit:
        raise FailedPreconditionError(
            f"containerd (process {daemon.pid}) is no unit of systemd; {_how_to_restart(daemon)}, "
            "then run this again"
        )
    services.restart([daemon.unit])
    end = time.monotonic() + _ANSWERS_WITHIN_S
    while True:
        try:
            found = containerd.find()
            _ask(found, Containerd.handlers)
        except (CommandError, NotFoundError):
            if time.monotonic() > end:
                raise
        else:
            return found
        time.sleep(0.1)


def _how_to_restart(daemon: Daemon) -> str:
    if daemon.unit:
        return f"systemctl restart {daemon.unit}"
    return "restart it as it was started"


def _have_forgotten(daemon: Daemon, *, restart: bool) -> Daemon:
    """A containerd that has read that there is no handler any more."""
    if _has(daemon, None):
        return daemon
    if restart:
        daemon = _restart(daemon)
    if not _has(daemon, None):
        raise FailedPreconditionError(
            f"containerd's files are as they were before grit install, but the containerd that "
            f"runs still has the handler {handlers.NAME}: {_how_to_restart(daemon)} (pods that "
            "run are not touched), then run grit uninstall again"
        )
    return daemon


def _refuse_damage(daemon: Daemon, done: Mapping[str, Made]) -> None:
    """See that containerd starts without the handler, and with all else as it is."""
    try:
        after = handler.bare(daemon, done)
        before = containerd.effective(daemon, {})
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


def _refuse_pods(daemon: Daemon) -> None:
    pods = sorted(_pods(daemon).values())
    if pods:
        raise PodStateError(
            f"pods run with the handler {handlers.NAME}, which they need to be stopped: "
            f"{', '.join(pods)}; delete them, or say --drain"
        )


def _stop_pods(daemon: Daemon, tell: Tell) -> None:
    for sandbox_id, name in _pods(daemon).items():
        _ask(daemon, partial(Containerd.stop, sandbox_id=sandbox_id))
        tell(f"stopped: {name}")


def _pods(daemon: Daemon) -> dict[str, str]:
    return dict(_ask(daemon, partial(Containerd.pods_of, handler=handlers.NAME)))


def _ask(daemon: Daemon, call: Callable[[Containerd], object]) -> Any:
    """What *call* returns, in a child: gRPC can hang in a process that has forked since it used it.

    CommandError if containerd does not answer.
    """

    def ask() -> object:
        with Containerd(daemon.address) as cri:
            return call(cri)

    with process.beside(ask) as hear:
        return hear()


def _end_zygote() -> None:
    """End what new shims are forked from, where it is no unit of systemd."""
    with suppress(FileNotFoundError, ProcessLookupError):
        pid = int(Path(_ZYGOTE).read_text("utf-8").split()[0])
        if procfs.text(pid, "comm") == "grit-zygote\n":
            os.kill(pid, signal.SIGTERM)
