import sys

import click

from grit_runtime import config
from grit_runtime.errors import printable
from grit_runtime.files import checkpoint_dir, confine


@click.command()
@click.argument("directory")
def verify(directory: str) -> None:
    """Read every byte of the checkpoint in DIRECTORY and compare it with the manifest.

    If the configuration sets trusted_keys, one of these keys must have signed the manifest.

    Exit 0 if nothing differs; otherwise print a line for each difference and exit 1.
    """
    dir_fd = confine.open_dir(directory)
    sealed = checkpoint_dir.read_manifest(dir_fd, directory)
    trusted_keys = config.load().trusted_keys
    if trusted_keys:
        checkpoint_dir.check_signature(dir_fd, directory, trusted_keys)
    problems = checkpoint_dir.differences(dir_fd, sealed.manifest)
    for problem in problems:
        click.echo(printable(f"{directory}: {problem}"), err=True)
    if problems:
        sys.exit(1)
    files = sealed.manifest.files
    size = sum(file.size_bytes for file in files)
    click.echo(f"{directory}: {len(files)} files, {size} bytes, as sealed")
