import json

import click

from grit_runtime import inspection


@click.command()
@click.argument("directory")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def inspect(directory: str, as_json: bool) -> None:
    """Show what the checkpoint in DIRECTORY holds: pod, node, containers, processes, mounts.

    Nothing is verified; "grit verify" reads every byte.
    """
    found = inspection.inspect(directory)
    click.echo(json.dumps(found, indent=1) if as_json else inspection.tree(found))
