"""grit doctor: what of this node stands in the way of checkpoints and restores."""

from __future__ import annotations

import json
import sys

import click

from grit_runtime.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from grit_runtime.doctor.finding import Finding

_SIGNS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "broken": ("✗", "bold red")}
_NO_SIGN = ("-", "dim")
_NAME_WIDTH = 22


@click.command()
@click.option("--live", "with_live", is_flag=True, help="Also dump and restore a small container.")
@click.option("--peer", "peers", multiple=True, metavar="peer://NODE", help="Also try this node's.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of JSON objects.")
def doctor(with_live: bool, peers: tuple[str, ...], as_json: bool) -> None:
    """Try all that checkpoints and restores need of this node, and say what to do about the rest.

    Exit 1 if something is broken. Nothing is changed, and no pod is touched. What a reason means is
    shown by "grit explain REASON".
    """
    from grit_runtime.doctor import examination

    findings = examination.findings(with_live=with_live, peers=peers)
    if as_json:
        found = list(findings)
        click.echo(json.dumps([one._asdict() for one in found], indent=1))
    else:
        found = _shown(findings)
    if any(one.verdict == "broken" for one in found):
        sys.exit(1)


def _shown(findings: Iterable[Finding]) -> list[Finding]:
    """Print each as it is found, and at last how many there are of each verdict."""
    from rich.console import Console

    console = Console(highlight=False, emoji=False)
    found = []
    for one in findings:
        found.append(one)
        _print(console, one)
    counts = {v: sum(one.verdict == v for one in found) for v in ("broken", "warning", "ok")}
    told = f"{counts['broken']} broken, {counts['warning']} warnings, {counts['ok']} in order"
    console.print(told, style="bold")
    return found


def _print(console: Console, one: Finding) -> None:
    from rich.text import Text

    sign, style = _SIGNS.get(one.verdict, _NO_SIGN)
    text = Text(printable(one.evidence), style="dim" if one.verdict == "absent" else "")
    if one.remedy:
        text.append(f"\n→ {printable(one.remedy)}", style=style)
    if one.reason:
        text.append(f" ({one.reason})", style="dim")
    head = f"{sign} {one.name:<{_NAME_WIDTH}} "
    lines = text.wrap(console, max(_NAME_WIDTH, console.width - len(head)))
    for at, line in enumerate(lines):
        line.rstrip()
        first = Text(" " * len(head)) if at else Text(head, style=style)
        console.print(first + line, soft_wrap=True)
