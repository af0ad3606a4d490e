import click

from grit_runtime.checkpoint import holds


@click.command()
@click.argument("target")
def resume(target: str) -> None:
    """Let TARGET run on after "grit checkpoint --after frozen".

    TARGET is NAMESPACE/POD or an id, as for "grit checkpoint". A container that was killed while
    it was held (by a liveness probe, for example) is restored from the checkpoint when kubelet
    starts it again.
    """
    for fate in holds.resume(target):
        click.echo(fate)
