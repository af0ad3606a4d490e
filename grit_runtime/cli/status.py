import json

import click

from grit_runtime.cli import agent
from grit_runtime.host import records
from grit_runtime.model import hold, outcomes
from grit_runtime.pod import held_pods
from grit_runtime.restore import audit


@click.command()
@click.argument("pod", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print a list of JSON objects.")
@click.option("--follow", is_flag=True, help="Show the agent's jobs until all have ended.")
def status(pod: str | None, as_json: bool, follow: bool) -> None:
    """Show how each checkpoint and restore on this node ended, oldest first.

    With POD (NAMESPACE/POD or a pod's uid), show those of that pod alone. A restore is of one
    container: the container was restored, its restore failed, or it was started cold. The last
    lines show the pods that are held, and the containers that an older version restored with wider
    mounts than their spec has.
    """
    if follow:
        agent.follow()
        return
    held_pods.drop_gone()
    now = [*(hold.outcome(one) for one in held_pods.every()), *audit.wider_mounts()]
    told = [*records.matching(pod), *(one for one in now if one.is_of(pod))]
    if as_json:
        click.echo(json.dumps([outcome._asdict() for outcome in told], indent=1))
        return
    for outcome in told:
        click.echo(outcomes.line(outcome))
    if not told:
        click.echo(f"grit: this node has no record of {pod or 'any pod'}", err=True)
