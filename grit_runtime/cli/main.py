"""The command grit. Each of its commands is a module beside this one, without logic of its own."""

import importlib
import signal
import sys
from typing import NoReturn

import click

from grit_runtime.errors import GritError, told

# The module of each command, the only one that is loaded: a pull need not know how to checkpoint.
_MODULES = {
    "agent": "agent",
    "checkpoint": "checkpoint",
    "compat": "compat",
    "doctor": "doctor",
    "gc": "store",
    "gpu": "gpu",
    "inspect": "inspect",
    "install": "install",
    "ls": "store",
    "manager": "manager",
    "pull": "store",
    "push": "store",
    "recover": "recover",
    "resume": "resume",
    "rm": "store",
    "status": "status",
    "uninstall": "install",
    "upgrade": "install",
    "verify": "verify",
}


class _Commands(click.Group):
    def list_commands(self, _context: click.Context) -> list[str]:
        return list(_MODULES)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in _MODULES:
            return None
        command: click.Command = getattr(
            importlib.import_module(f"grit_runtime.cli.{_MODULES[name]}"), name
        )
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def grit() -> None:
    """Checkpoint running pods and look after checkpoints.

    A checkpoint is restored by giving a new pod the runtime class "grit" and the annotation
    grit.dev/restore-name: NAME; no command is needed for that.
    """


def main() -> None:
    signal.signal(signal.SIGTERM, _terminate)
    try:
        grit()
    except (GritError, OSError) as error:
        click.echo(f"grit: {told(error)}", err=True)
        sys.exit(1)


def _terminate(_number: int, _frame: object) -> NoReturn:
    """Raise an exception, so that the running command undoes what it has begun."""
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
