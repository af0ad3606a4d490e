import json

import click

from grit_runtime.host import records
from grit_runtime.model import lifecycle


@click.command()
@click.argument("pod", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a list of JSON objects.")
def status(pod: str | None, as_json: bool) -> None:
    """Show what became of each checkpoint and restore on this node, oldest first.

    With POD, NAMESPACE/POD or a pod's uid, of that pod alone. A restore is of one container: it was
    restored, it failed, or it was started cold; each with the reason.
    """
    outcomes = records.matching(pod)
    if as_json:
        click.echo(json.dumps([outcome._asdict() for outcome in outcomes], indent=1))
        return
    for outcome in outcomes:
        click.echo(lifecycle.line(outcome))
