"""Installing grit on a node, and bringing an installation up to date."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from grit_runtime import config
from grit_runtime.errors import FailedPreconditionError, NotFoundError
from grit_runtime.installation import changes, containerd, live, self_test, services, wanted
from grit_runtime.model import handlers
from grit_runtime.model.installation_steps import Choice, Directory
from grit_runtime.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from grit_runtime.host.journal import Journal
    from grit_runtime.installation.changes import Change, Made
    from grit_runtime.installation.containerd import Daemon
    from grit_runtime.installation.wanted import Wanted
    from grit_runtime.model.installation_steps import InstallationStep

    Tell = Callable[[str], None]


def show(choice: Choice) -> Iterator[str]:
    """What `install` would change, as a difference for each file; changes nothing."""
    daemon = containerd.find()
    wants = wanted.look(daemon, choice, changes.standing(changes.recorded()))
    yield _about(daemon, wants)
    root = config.load().checkpoint_root
    if not os.path.isdir(root):
        yield f"made: {root}"
    yield from _shown(wants.changes, changes.standing(changes.recorded()), whole=True)


def install(choice: Choice, *, restart: bool, tell: Tell) -> None:
    """Have grit on this node as *choice* says, and nothing of what an earlier one said besides.

    With *restart*, containerd is restarted if it has to read its files anew. Blocks for seconds.
    """
    with changes.opened() as held:
        daemon = containerd.find()
        done = changes.standing(held.steps())
        wants = wanted.look(daemon, choice, done)
        tell(_about(daemon, wants))
        for text in _shown(wants.changes, done, whole=False):
            tell(text)
        services.stop([unit for unit in services.among(done) if unit not in wants.units])
        last = changes.choice(held.steps())
        readers = _make(choice, wants, held)
        if changes.SYSTEMD in readers:
            services.read_anew()
        is_new = changes.SYSTEMD in readers or last is None or last.version != choice.version
        _start(wants.units, anew=is_new)
        if not live.has(daemon, wants.handler):
            if not restart:
                tell(
                    f"containerd has not read its configuration yet: {live.how_to_restart(daemon)} "
                    "(pods that run are not touched), then run grit install again for the "
                    "self-test"
                )
                return
            daemon = live.restarted(daemon)
            if not live.has(daemon, wants.handler):
                raise FailedPreconditionError(
                    f"containerd at {daemon.address} was restarted and has no handler "
                    f"{handlers.NAME} as it was written; look at what makes {daemon.config}"
                )
        took_s = self_test.run(daemon, wants)
        tell(f"self-test: a container was checkpointed and restored ({took_s:.1f} s in all)")


def upgrade(*, restart: bool, tell: Tell) -> None:
    """Bring launchers, units and the handler to this version of grit, as they were asked for."""
    done = changes.recorded()
    if changes.is_leaving(done):
        tell(
            "grit uninstall has begun here, so nothing is upgraded: run grit uninstall again once "
            "containerd was restarted, or grit install to have grit after all"
        )
        return
    choice = changes.choice(done)
    if choice is None:
        raise NotFoundError("this node has no installation to upgrade; run grit install")
    live.refuse_under_way("upgrade")
    install(choice._replace(version=VERSION), restart=restart, tell=tell)


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
            changes.take_all_back(held)
        raise


def _start(units: Sequence[str], *, anew: bool) -> None:
    """Start what does not run; the agent *anew*, which goes on with its jobs, but not others."""
    old = [unit for unit in units if anew and unit == wanted.AGENT]
    services.start([unit for unit in units if unit not in old])
    services.restart(old)


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
    old = Path(path).read_bytes().decode(errors="replace") if os.path.isfile(path) else ""
    new = changes.content(path, change).decode(errors="replace")
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), path if old else os.devnull, path, lineterm=""
    )
    return "\n".join(lines)
