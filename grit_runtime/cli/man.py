"""Manual pages, made of the help that the commands print, for whoever makes a package."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from grit_runtime.cli.kubectl import kubectl
from grit_runtime.cli.main import grit
from grit_runtime.version import VERSION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def commands(command: click.Command, context: click.Context) -> Iterator[click.Context]:
    """A command and all below it, each with the name that it is called by."""
    yield context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            if child is not None and not child.hidden:
                yield from commands(child, click.Context(child, info_name=name, parent=context))


def page(context: click.Context) -> str:
    """The manual page of a command, in the language of man(7)."""
    name = context.command_path.replace(" ", "-")
    summary = context.command.get_short_help_str(limit=200)
    lines = context.command.get_help(context).splitlines()
    return "\n".join(
        [
            f'.TH "{name.upper()}" "8" "" "grit {VERSION}" "grit"',
            ".SH NAME",
            f"{_plain(name)} \\- {_plain(summary)}",
            ".SH DESCRIPTION",
            ".nf",
            *(_plain(line) for line in lines),
            ".fi",
            "",
        ]
    )


def _plain(line: str) -> str:
    """A line that means nothing to roff: it begins no request, and has no escapes or hyphens."""
    text = line.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text


def main() -> None:
    directory = Path(sys.argv[1])
    for program, name in ((grit, "grit"), (kubectl, "kubectl-grit")):
        for context in commands(program, click.Context(program, info_name=name)):
            path = directory / f"{context.command_path.replace(' ', '-')}.8"
            path.write_text(page(context), "utf-8")


if __name__ == "__main__":
    main()
