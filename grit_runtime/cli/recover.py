import click

from grit_runtime import log, paths
from grit_runtime.checkpoint import holds
from grit_runtime.restore import attempts


@click.command()
@click.option("--wait", "journal", hidden=True, help="Supervise the checkpoint of this journal.")
def recover(journal: str | None) -> None:
    """Undo what killed checkpoints and restores left behind.

    Frozen containers run on, half-written directories are removed, half-restored containers are
    ended. A supervisor does this by itself when a checkpoint is killed, the pod's next container
    or its deletion when a restore is; this is for when those died too. Safe at any time.
    """
    if journal:
        log.to_file(f"{paths.LOG_DIR}/supervisor.log")
        holds.supervise(journal)
        return
    for path in holds.recover():
        click.echo(f"undone: {path}")
    attempts.recover()
