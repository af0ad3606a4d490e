"""The command grit. Each of its commands is a module beside this one, without logic of its own."""

import signal
import sys
from typing import NoReturn

import click

from grit_runtime.cli.agent import agent
from grit_runtime.cli.checkpoint import checkpoint
from grit_runtime.cli.compat import compat
from grit_runtime.cli.gpu import gpu
from grit_runtime.cli.inspect import inspect
from grit_runtime.cli.manager import manager
from grit_runtime.cli.recover import recover
from grit_runtime.cli.resume import resume
from grit_runtime.cli.status import status
from grit_runtime.cli.store import gc, ls, pull, push, rm
from grit_runtime.cli.verify import verify
from grit_runtime.errors import GritError, told


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def grit() -> None:
    """Checkpoint running pods and look after checkpoints.

    A checkpoint is restored by giving a new pod the runtime class "grit" and the annotation
    grit.dev/restore-name: NAME; no command is needed for that.
    """


_ABOUT_PODS = (checkpoint, resume, recover, status, gpu)
_ABOUT_CHECKPOINTS = (inspect, verify, compat, ls, push, pull, rm, gc)

for _command in (*_ABOUT_PODS, *_ABOUT_CHECKPOINTS, agent, manager):
    grit.add_command(_command)


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
