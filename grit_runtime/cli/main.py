"""The command grit. Each of its commands is a module beside this one, without logic of its own."""

import ast
import importlib
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import click

from grit_runtime.errors import GritError, told

# The module of each command, the only one that is loaded: a pull need not know how to checkpoint.
_MODULES = {
    "agent": "agent",
    "bundle": "bundle",
    "checkpoint": "checkpoint",
    "compat": "compat",
    "doctor": "doctor",
    "explain": "explain",
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

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """As click's, but from the text of the modules: to load them all takes 0.2 s."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, _summary(name)) for name in _MODULES])


def _summary(name: str) -> str:
    """The first sentence of a command's help, which is its function's docstring."""
    text = Path(__file__).with_name(f"{_MODULES[name]}.py").read_text("utf-8")
    (function,) = (
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef) and node.name.rstrip("_") == name
    )
    return " ".join((ast.get_docstring(function) or "").split()).partition(". ")[0].rstrip(".")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def grit() -> None:
    """Checkpoint running pods and look after checkpoints.

    A checkpoint is restored by giving a new pod the runtime class "grit" and the annotation
    grit.dev/restore-name: NAME; no command is needed for that.
    """


def main() -> None:
    signal.signal(signal.SIGTERM, _terminate)
    # Read when gRPC is loaded. In a child it would start its threads again, and who has threads
    # can enter no namespaces.
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
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
