import json
from typing import cast

import click

from grit_runtime import config
from grit_runtime.checkpoint import standstill, take, undoing
from grit_runtime.checkpoint.order import After, Order
from grit_runtime.cli import store as pushing
from grit_runtime.host.containerd import Containerd
from grit_runtime.model import annotations
from grit_runtime.model.manifest import plain
from grit_runtime.restore import attempts


@click.command()
@click.argument("target")
@click.option("--name", help="Name of the checkpoint; the pod's name if not given.")
@click.option(
    "--after",
    type=click.Choice(["running", "frozen", "stopped"]),
    default="running",
    show_default=True,
    help="What to do with the source once the checkpoint is sealed. frozen: hold it until grit "
    "resume or the pod's deletion, as a migration needs; stopped: kill it.",
)
@click.option("--replace", is_flag=True, help="Replace a checkpoint of the same name.")
@click.option(
    "--pod-is-going",
    is_flag=True,
    help="With --after stopped: the pod is being deleted, so kubelet will not restart it.",
)
@click.option(
    "--stage",
    type=click.Choice(["all", "gpu"]),
    default="all",
    show_default=True,
    help="gpu: suspend the pod's GPU memory and write nothing; grit gpu restore TARGET resumes it.",
)
@click.option(
    "--capture",
    default="",
    help="Volumes to save besides /dev/shm and those of the pod's annotation: emptydir:NAME,...",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Refuse to checkpoint, instead of warning, if something would come back different.",
)
@click.option(
    "--push",
    "store",
    default="",
    metavar="STORE",
    help="Put the checkpoint into STORE too, as grit push does; memory is sent while CRIU dumps.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the manifest instead of the path.")
def checkpoint(
    target: str,
    name: str | None,
    after: str,
    replace: bool,
    pod_is_going: bool,
    stage: str,
    capture: str,
    strict: bool,
    store: str,
    as_json: bool,
) -> None:
    """Checkpoint TARGET: NAMESPACE/POD, a pod sandbox's id, or one container's id.

    All containers are frozen before the first is dumped. The checkpoint is written to
    CHECKPOINT_ROOT/NAMESPACE/NAME (the root is /mnt/grit-agent unless configured otherwise). Its
    path is printed when it is sealed, progress is logged to standard error. If the checkpoint fails
    or is interrupted before, the source runs on as before and no half-written directory is left;
    from then on the source is as --after says, whatever happens.
    """
    settings = config.load()
    undoing.recover()
    attempts.recover()
    with Containerd(settings.containerd_address) as containerd:
        pod = containerd.find(target)
        version = containerd.version()
    if stage == "gpu":
        freed = standstill.suspend_gpus(pod, settings)
        click.echo(f"{pod.namespace}/{pod.name}: {freed} bytes of GPU memory freed")
        return
    order = Order(
        pod=pod,
        name=pod.name if name is None else name,
        after=cast("After", after),  # click.Choice has checked it
        replace=replace,
        pod_is_going=pod_is_going,
        capture=annotations.capture(capture),
        containerd_version=version,
        strict=strict,
        store="" if store.startswith("peer:") else store,  # that asks for it when it is sealed
    )
    if store:
        pushing.require(store)
    sealed = take.checkpoint(order, settings)
    click.echo(json.dumps(plain(sealed.manifest), indent=1) if as_json else sealed.path)
    if store:
        pushed = pushing.put(sealed.path, store, None, begun=sealed.begun)
        click.echo(pushing.told_of(pushed, sealed.path, store), err=True)
