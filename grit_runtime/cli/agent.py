"""grit agent: the node's daemon, and what belongs to it."""

from __future__ import annotations

import click

from grit_runtime import config


@click.group()
def agent() -> None:
    """Move checkpoints between nodes."""


@agent.command()
@click.option("--directory", help="Where they are kept; the configuration's agent_dir by default.")
@click.option("--node", metavar="NAME", required=True, help="This node, as kubectl names it.")
@click.option("--ca", metavar="DIR", default="", help="Where the CA is, if not in that directory.")
def init(directory: str | None, node: str, ca: str) -> None:
    """Make this node's certificate and key, and a CA if there is none yet.

    Nodes trust each other if their certificates are of the same CA: copy ca.pem and ca.key to the
    other nodes' directories first, or make all nodes' certificates where the CA is. Nothing is
    overwritten. The key of the CA is needed on no node afterwards.
    """
    from grit_runtime.agent import identity  # an extra

    made = identity.make(directory or config.load().agent_dir, node, ca)
    for path in made.paths:
        click.echo(path)
    click.echo(f"node {node}: valid until {made.valid_until}")
