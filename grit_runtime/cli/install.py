import click

from grit_runtime.installation import operations, removal, wanted
from grit_runtime.model.installation_steps import Choice
from grit_runtime.version import VERSION

_restart = click.option(
    "--restart", is_flag=True, help="Restart containerd where that is needed; pods run on."
)


@click.command()
@click.option(
    "--shim",
    type=click.Choice([wanted.OWN, wanted.STOCK]),
    default=wanted.OWN,
    show_default=True,
    help="Whose shim pods of the handler get: grit's own, or containerd's.",
)
@click.option("--agent", is_flag=True, help="Run the node's agent, as a unit of systemd.")
@click.option("--dry-run", is_flag=True, help="Show all that would be written; write nothing.")
@_restart
def install(shim: str, agent: bool, dry_run: bool, restart: bool) -> None:
    """Install grit on this node: its programs, its units, and its handler in containerd.

    The containerd is the one that kubelet uses. Its configuration is compared before and after,
    and must differ in the handler alone. Run it again at any time: what is no longer asked for is
    taken away. It ends with a container that is checkpointed and restored.
    """
    choice = Choice(VERSION, shim, agent)
    if dry_run:
        for text in operations.show(choice):
            click.echo(text)
        return
    operations.install(choice, restart=restart, tell=click.echo)


@click.command()
@_restart
def upgrade(restart: bool) -> None:
    """Bring what grit install has written to this version of grit.

    Pods that run are not touched. Nothing may be held or under way.
    """
    operations.upgrade(restart=restart, tell=click.echo)


@click.command()
@_restart
@click.option("--drain", is_flag=True, help="Stop the pods that still run with the handler.")
@click.option("--purge", is_flag=True, help="Remove /etc/grit with its keys, records and logs.")
def uninstall(restart: bool, drain: bool, purge: bool) -> None:
    """Take back all that grit install has written, to the byte.

    Checkpoints are left, and without --purge what grit has recorded, logged and was told in
    /etc/grit. Keys that are kept there (store_key, signing_key) go with --purge. Nothing may be
    held or under way.
    """
    removal.uninstall(restart=restart, drain=drain, purge=purge, tell=click.echo)
