from __future__ import annotations

import json
import os
import sys

import click

from grit_runtime import config
from grit_runtime.errors import InvalidArgumentError, printable


@click.command()
@click.argument("checkpoint", required=False)
@click.option(
    "--node",
    "facts_path",
    type=click.Path(exists=True, dir_okay=False),
    metavar="FACTS.json",
    help="The node that is meant, as --facts has printed it there; this node by default.",
)
@click.option("--facts", "as_facts", is_flag=True, help="Print this node's facts, for --node.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compat(checkpoint: str | None, facts_path: str | None, as_facts: bool, as_json: bool) -> None:
    """Say whether CHECKPOINT, a directory or NAMESPACE/NAME, could be restored here or elsewhere.

    Exit 1 if not, with a line for each reason. The new pod's own spec is not looked at:
    "grit inspect --against" does that.
    """
    from grit_runtime.files import checkpoint_dir
    from grit_runtime.model import compatibility
    from grit_runtime.nvidia import node_facts

    if as_facts:
        click.echo(compatibility.dump_facts(node_facts.here(config.load(), with_gpus=True)))
        return
    if not checkpoint:
        raise InvalidArgumentError("no checkpoint is named; expected a directory or NAMESPACE/NAME")
    path = checkpoint
    if not os.path.exists(path):
        path = f"{config.load().checkpoint_root}/{checkpoint}"
    with checkpoint_dir.opened(path) as (_, sealed):
        needs = compatibility.needs_of(sealed.manifest)
    if facts_path:
        with open(facts_path, "rb") as file:
            facts = compatibility.parse_facts(file.read(), facts_path)
    else:
        facts = node_facts.here(config.load(), with_gpus=bool(needs.gpus))
    reasons = compatibility.verdict(needs, facts)
    if as_json:
        click.echo(json.dumps({"fits": not reasons, "reasons": reasons}))
    else:
        for reason in reasons or [f"{path} can be restored there"]:
            click.echo(printable(f"{path}: {reason}" if reasons else reason))
    if reasons:
        sys.exit(1)
