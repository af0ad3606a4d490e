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
    help="Show what a restore on this node would do with the bundle in that directory, or with a "
    "pod like the running NAMESPACE/POD; exit 1 if it would be refused.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(checkpoint: str, target: str | None, as_json: bool) -> None:
    """Show what CHECKPOINT, a directory or an archive, holds: pod, node, processes, mounts.

    The files are not compared with the manifest; "grit verify" does that.
    """
    if target is None:
        contents = inspection.inspect(checkpoint)
        click.echo(json.dumps(contents, indent=1) if as_json else inspection.tree(contents))
        return

    from grit_runtime.restore import dry_run  # a plain inspect needs no containerd

    plans = dry_run.against(checkpoint, target, config.load())
    click.echo(json.dumps(plans, indent=1) if as_json else dry_run.text(plans))
    if any(plan["refusals"] for plan in plans):
        sys.exit(1)
