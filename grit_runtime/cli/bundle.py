from __future__ import annotations

import os
import time

import click


@click.command()
@click.option("--output", metavar="FILE", help="By default grit-HOST-TIME.tar.gz, here.")
def bundle(output: str | None) -> None:
    """Collect what a report of a fault needs of this node, without secrets, into one archive.

    Findings of "grit doctor", records, logs, the agent's jobs, handlers of containerd, manifests. A
    README in it says what else there is, and what is left out.
    """
    from grit_runtime import bug_report
    from grit_runtime.model import sizes

    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    path = output or f"grit-{os.uname().nodename}-{stamp}.tar.gz"
    report = bug_report.write(path)
    size = sizes.shown(report.size_bytes)
    click.echo(f"{path}: {report.files} files, {size}; {report.removed} secrets taken out")
