import os

import click

from grit_runtime import log, paths
from grit_runtime.checkpoint import undoing
from grit_runtime.files import digest
from grit_runtime.pod import network
from grit_runtime.restore import attempts


@click.command()
@click.option("--wait", "journal", hidden=True, help="Supervise the checkpoint of this journal.")
@click.option("--log-json", is_flag=True, hidden=True, help="As the checkpoint logs.")
def recover(journal: str | None, log_json: bool) -> None:
    """Undo what killed checkpoints and restores left behind.

    This thaws frozen containers, removes half-written directories and deletes half-restored
    containers. It is seldom needed: the supervisor of a killed checkpoint undoes it, and a killed
    restore is undone when the pod's next container is created or the pod is deleted. It is safe at
    any time.
    """
    if journal:
        usual = os.nice(0)
        os.nice(19)  # the checkpoint that has just begun needs the processors more
        network.load()
        digest.load()
        os.setpriority(os.PRIO_PROCESS, 0, usual)
        log.to_file(f"{paths.LOG_DIR}/supervisor.log")
        if log_json:
            log.as_json()
        undoing.supervise(journal)
        return
    undone, failed = undoing.recover()
    for path in undone:
        click.echo(f"undone: {path}")
    for error in failed + attempts.recover():
        raise error
