"""What a node has once grit is installed: files, units and the handler, with its own paths."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path

from grit_runtime import config
from grit_runtime.host import process
from grit_runtime.installation import changes, containerd, handler, services
from grit_runtime.installation.changes import Block, File, Link
from grit_runtime.model import handlers
from grit_runtime.startup.named import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from grit_runtime.installation.changes import Change, Made
    from grit_runtime.installation.containerd import Daemon
    from grit_runtime.model.handlers import Table
    from grit_runtime.model.installation_steps import Choice

OWN, STOCK = "own", "stock"  # whose shim the handler has

_FILES = Path(__file__).with_name("files")
_BIN = "/usr/local/bin"
RUNTIME = f"{_BIN}/grit-runtime"
SHIM = f"{_BIN}/containerd-shim-grit-v1"
_COMMAND = f"{_BIN}/grit"

_ZYGOTE = {"grit-zygote.socket": "sockets.target", "grit-zygote.service": "multi-user.target"}
AGENT = "grit-agent.service"
_AGENT = {AGENT: "multi-user.target"}


class Wanted(NamedTuple):
    """*changes* by paths, in the order in which they are made; containerd is told last."""

    changes: dict[str, Change]
    units: list[str]
    handler: Table
    runc: str  # what grit hands calls on to


def look(daemon: Daemon, choice: Choice, done: Mapping[str, Made]) -> Wanted:
    """What this node should have. Changes nothing; errors say why grit cannot be installed."""
    base = handlers.base(handler.bare(daemon, done))
    shim = SHIM if choice.shim == OWN else ""
    table = handlers.table(base, runtime=RUNTIME, shim=shim)
    runc = handler.runtime_below(daemon, base)
    daemon.find("ctr")  # which the self-test needs
    units = {**(_ZYGOTE if shim else {}), **(_AGENT if choice.has_agent else {})}
    if not services.are_there():
        units = {}
    path, change = handler.place(daemon, table, base, done)
    files = {
        **_programs(runc),
        **_units(units),
        **_address(daemon.address),
        path: change,
    }
    return Wanted(files, list(units), table, runc)


def _programs(runc: str) -> dict[str, Change]:
    """Both launchers, whatever shim the handler has: pods keep the one they were started with."""
    python, packages = os.path.realpath(sys.executable), _packages()
    # As the launchers do: without this environment's own paths.
    code = "import sys; sys.path.append(sys.argv[1]); import grit_runtime.oci.intercept"
    process.run([python, "-ISE", "-c", code, packages], token=process.new_token())
    paths = {"python": python, "packages": packages}
    programs: dict[str, Change] = {
        RUNTIME: launcher("grit-runtime", **paths, runc=runc),
        SHIM: launcher("containerd-shim-grit-v1", **paths),
    }
    command = f"{sys.prefix}/bin/grit"
    if os.path.exists(command):
        programs[_COMMAND] = Link(command)
    return programs


def launcher(name: str, **paths: str) -> File:
    """A launcher with the paths at its top as they are on the node."""
    text = (_FILES / name).read_text("utf-8")
    for variable, path in paths.items():
        line = f"{variable}={shlex.quote(path)}".replace("\\", r"\\")
        text = re.sub(f"^{variable}=.*$", line, text, count=1, flags=re.MULTILINE)
    return File(text.encode(), mode=0o755)


def _packages() -> str:
    return str(Path(__file__).absolute().parents[2])


def _units(units: Mapping[str, str]) -> dict[str, Change]:
    """Units, and the links that `systemctl enable` would make, so that they go as they came."""
    found: dict[str, Change] = {}
    for name, target in units.items():
        text = (_FILES / name).read_text("utf-8")
        text = text.replace(_COMMAND + " ", f"{sys.prefix}/bin/grit ")
        path = f"{services.UNIT_DIR}/{name}"
        found[path] = File(text.encode(), read_by=changes.SYSTEMD)
        link = f"{services.UNIT_DIR}/{target}.wants/{name}"
        found[link] = Link(f"../{name}", changes.SYSTEMD)
    return found


def _address(address: str) -> dict[str, Change]:
    """What tells grit of a containerd that is not where it usually is."""
    if address in (containerd.said_address(), config.Config().containerd_address):
        return {}
    return {os.path.realpath(config.PATH): Block(f'containerd_address = "{address}"\n')}
