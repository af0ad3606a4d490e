import click

from grit_runtime.checkpoint import holds


@click.command()
@click.argument("target")
def resume(target: str) -> None:
    """Let TARGET run on after "grit checkpoint --after frozen".

    TARGET is NAMESPACE/POD or an id, as for "grit checkpoint". What was killed while it was held
    (a liveness probe does that) is restored from the checkpoint when kubelet starts it again.
    """
    for fate in holds.resume(target):
        click.echo(fate)
