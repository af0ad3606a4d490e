"""kubectl grit: the cluster's checkpoints for people. kubectl runs the program kubectl-grit."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import click

from grit_runtime.errors import GritError, InvalidArgumentError, told

_CLAIM = click.option("--claim", default="", help="Put the checkpoint into this claim.")
_URL = click.option("--store", "url", default="", help="Put the checkpoint into this store.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-n", "--namespace", default="", help="The namespace; the context's if not given.")
@click.pass_context
def kubectl(context: click.Context, namespace: str) -> None:
    """Checkpoint, move and restore pods of a cluster that runs grit manager."""
    context.obj = namespace


@kubectl.command()
@click.argument("pod")
@click.option("--name", default="", help="Of the Checkpoint.")
@click.option(
    "--after",
    type=click.Choice(["running", "frozen", "stopped"]),
    default="running",
    show_default=True,
)
@_CLAIM
@_URL
@click.pass_obj
def checkpoint(namespace: str, pod: str, name: str, after: str, claim: str, url: str) -> None:
    """Take a checkpoint of POD."""
    from grit_runtime.manager import asking

    spec = {"podName": pod, "after": after, "storage": asking.storage(claim, url)}
    name = name or asking.generated(pod, "checkpoint")

    async def ask(cluster: Any, here: str) -> None:
        now = await asking.ask(cluster, "Checkpoint", here, name, spec, _say)
        click.echo(f"checkpoint {here}/{name}: {now.get('size', '')}, {now['manifestDigest']}")

    _run(namespace, ask)


@kubectl.command()
@click.argument("pod")
@click.option("--to", "node", default="", help="The node; one that can take it if not given.")
@_CLAIM
@_URL
@click.pass_obj
def migrate(namespace: str, pod: str, node: str, claim: str, url: str) -> None:
    """Move POD to another node. If that fails it runs on where it is."""
    from grit_runtime.manager import asking

    spec = {"podName": pod, "nodeName": node, "storage": asking.storage(claim, url)}
    name = asking.generated(pod, "migration")

    async def ask(cluster: Any, here: str) -> None:
        now = await asking.ask(cluster, "Migration", here, name, spec, _say)
        click.echo(f"pod {here}/{now['targetPod']} goes on, on node {now['targetNode']}")

    _run(namespace, ask)


@kubectl.command()
@click.argument("checkpoint")
@click.option("--pod", required=True, help="The name of the new pod.")
@click.pass_obj
def restore(namespace: str, checkpoint: str, pod: str) -> None:
    """Make a pod that goes on from CHECKPOINT."""
    from grit_runtime.manager import asking

    async def ask(cluster: Any, here: str) -> None:
        now = await asking.restore(cluster, here, checkpoint, pod, _say)
        click.echo(f"pod {here}/{pod} goes on, on node {now['nodeName']}")

    _run(namespace, ask)


@kubectl.command()
@click.argument("node")
@click.option("--dry-run", is_flag=True, help="Say what would become of each pod.")
def drain(node: str, dry_run: bool) -> None:
    """Cordon NODE and move its pods to others. Pods that cannot be moved stay, and are named."""
    from grit_runtime.manager import asking

    async def ask(cluster: Any, _: str) -> None:
        wanted = await asking.leaving(cluster, node)
        for where, why in wanted.left:
            click.echo(f"{where} stays: {why}", err=True)
        if dry_run:
            for pod in wanted.movable:
                click.echo(f"{pod['metadata']['namespace']}/{pod['metadata']['name']} would move")
            return
        failed = await asking.drain(
            cluster, node, wanted, lambda where, line: _say(f"{where}: {line}")
        )
        for where, why in failed:
            click.echo(f"{where} stays: {why}", err=True)
        click.echo(f"{len(wanted.movable) - len(failed)} pods of node {node} have moved")
        if failed:
            sys.exit(1)

    _run("", ask)


@kubectl.command()
@click.pass_obj
def status(namespace: str) -> None:
    """List Checkpoints, Restores and Migrations with what becomes of them."""
    from grit_runtime.manager import cluster as kube

    async def ask(cluster: Any, here: str) -> None:
        rows = []
        for kind in (kube.CHECKPOINTS, kube.RESTORES, kube.MIGRATIONS):
            for one in await cluster.every(kind, here):
                now = one.get("status") or {}
                name = f"{one['kind'].lower()}/{one['metadata']['name']}"
                rows.append((name, now.get("phase", ""), now.get("message", "")))
        _table(("OBJECT", "PHASE", "MESSAGE"), rows)

    _run(namespace, ask)


@kubectl.command()
@click.pass_obj
def ls(namespace: str) -> None:
    """List the sealed checkpoints."""
    from grit_runtime.manager import cluster as kube

    async def ask(cluster: Any, here: str) -> None:
        rows = []
        for one in await cluster.every(kube.CHECKPOINTS, here):
            now = one.get("status") or {}
            if now.get("manifestDigest"):
                fields = ("podName", "nodeName", "size", "completionTime", "dataPath")
                rows.append((one["metadata"]["name"], *(now.get(key, "") for key in fields)))
        _table(("NAME", "POD", "NODE", "SIZE", "TAKEN", "WHERE"), rows)

    _run(namespace, ask)


@kubectl.command()
@click.argument("target")
@click.pass_obj
def explain(namespace: str, target: str) -> None:
    """Say what has happened to KIND/NAME (a checkpoint, restore or migration), or what a reason
    means."""
    from grit_runtime import reasons
    from grit_runtime.explain import conditions, terminal
    from grit_runtime.manager import cluster as kube

    if page := reasons.find(target):
        terminal.show_reason(page, ())
        return
    kinds = {
        "checkpoint": kube.CHECKPOINTS,
        "restore": kube.RESTORES,
        "migration": kube.MIGRATIONS,
    }
    kind, _, name = target.partition("/")
    if kind not in kinds or not name:
        raise InvalidArgumentError(
            f"{target[:80]}: expected a reason, checkpoint/NAME, restore/NAME or migration/NAME"
        )

    async def ask(cluster: Any, here: str) -> None:
        terminal.show(conditions.story(await cluster.get(kinds[kind], here, name)))

    _run(namespace, ask)


def main() -> None:
    try:
        kubectl(prog_name="kubectl grit")
    except (GritError, OSError) as error:
        click.echo(f"kubectl grit: {told(error)}", err=True)
        sys.exit(1)


def _run(namespace: str, ask: Callable[[Any, str], Awaitable[None]]) -> None:
    """Do *ask* with the cluster of KUBECONFIG, and the namespace."""
    from lightkube import AsyncClient
    from lightkube.config.kubeconfig import KubeConfig

    from grit_runtime.manager.cluster import Cluster

    async def work() -> None:
        async with AsyncClient(KubeConfig.from_env()) as client:
            await ask(Cluster(client), namespace or client.namespace)

    asyncio.run(work())


def _say(line: str) -> None:
    click.echo(line, err=True)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("   ".join(cells).rstrip())


if __name__ == "__main__":
    main()
