import click

from grit_runtime import config, holds
from grit_runtime.host.containerd import Containerd


@click.command()
@click.argument("target")
def resume(target: str) -> None:
    """Let TARGET run on after "grit checkpoint --after frozen".

    TARGET is NAMESPACE/POD or an id, as for "grit checkpoint".
    """
    with Containerd(config.load().containerd_address) as containerd:
        pod = containerd.find(target)
    holds.resume(pod)
