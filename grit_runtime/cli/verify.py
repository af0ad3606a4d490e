import os
import sys

import click

from grit_runtime import config
from grit_runtime.errors import printable
from grit_runtime.files import checkpoint_dir, confine, verified


@click.command()
@click.argument("directory")
def verify(directory: str) -> None:
    """Read every byte of the checkpoint in DIRECTORY and compare it with the manifest.

    If the configuration sets trusted_keys, one of these keys must have signed the manifest.

    Restores on this node go by it until the checkpoint changes or the node is rebooted.

    Exit 0 if nothing differs; otherwise print a line for each difference and exit 1.
    """
    dir_fd = confine.open_dir(directory)
    sealed = checkpoint_dir.read_manifest(dir_fd, directory)
    trusted_keys = config.load().trusted_keys
    if trusted_keys:
        checkpoint_dir.check_signature(dir_fd, directory, trusted_keys)
    before = verified.fingerprint(dir_fd)
    problems = checkpoint_dir.differences(dir_fd, sealed.manifest)
    for problem in problems:
        click.echo(printable(f"{directory}: {problem}"), err=True)
    if problems:
        verified.forget(sealed.sha256)
        sys.exit(1)
    if os.geteuid() == 0:  # others may read a checkpoint too
        verified.keep(dir_fd, os.path.abspath(directory), before)
    files = sealed.manifest.files
    click.echo(f"{directory}: {len(files)} files, {sealed.manifest.size_bytes} bytes, as sealed")
