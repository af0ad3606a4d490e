import json
import sys

import click

from grit_runtime import config
from grit_runtime.checkpoint import inspection


@click.command()
@click.argument("checkpoint")
@click.option(
    "--against",
    "target",
    metavar="BUNDLE_OR_POD",
    help="Show what a restore on this node into that bundle's directory, or into a pod like the "
    "running NAMESPACE/POD, would do; exits 1 if it would be refused.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(checkpoint: str, target: str | None, as_json: bool) -> None:
    """Show what CHECKPOINT, a directory or an archive, holds: pod, node, processes, mounts.

    Nothing is verified; "grit verify" reads every byte.
    """
    if target is None:
        found = inspection.inspect(checkpoint)
        click.echo(json.dumps(found, indent=1) if as_json else inspection.tree(found))
        return

    from grit_runtime.restore import dry_run  # asks containerd, a plain look does not

    held = dry_run.against(checkpoint, target, config.load())
    click.echo(json.dumps(held, indent=1) if as_json else dry_run.plans(held))
    if any(container["refusals"] for container in held):
        sys.exit(1)
