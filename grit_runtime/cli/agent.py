"""grit agent: the node's daemon, and what belongs to it."""

from __future__ import annotations

import json
import sys
import time

import click

from grit_runtime import config
from grit_runtime.cli import progress
from grit_runtime.errors import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from grit_runtime.proto import agent_pb2


_LOOK_EVERY_S = 0.5


@click.group(invoke_without_command=True)
@click.option("--action", type=click.Choice(["checkpoint", "restore"]), envvar="ACTION")
@click.option("--src-dir", help="Where the checkpoint is taken or read.")
@click.option("--dst-dir", help="Where it is copied.")
@click.option("--host-work-path", hidden=True, help="Upstream's manager sets it; --src-dir has it.")
@click.option("--target-pod-namespace", envvar="TARGET_NAMESPACE", default="", metavar="NAMESPACE")
@click.option("--target-pod-name", envvar="TARGET_NAME", default="", metavar="POD")
@click.option("--target-pod-uid", envvar="TARGET_UID", default="", metavar="UID")
@click.option("--runtime-endpoint", metavar="SOCKET", help="containerd's, if not as configured.")
@click.option("--v", "verbosity", hidden=True, help="Upstream's job sets it.")
@click.pass_context
def agent(
    context: click.Context,
    action: str | None,
    src_dir: str | None,
    dst_dir: str | None,
    host_work_path: str | None,
    target_pod_namespace: str,
    target_pod_name: str,
    target_pod_uid: str,
    runtime_endpoint: str | None,
    verbosity: str | None,
) -> None:
    """Move checkpoints between nodes.

    With --action it is a job of upstream GRIT's manager: it takes one checkpoint of the target pod
    in the source directory and copies it to the destination, or copies one and writes the file
    that upstream's runtime waits for. Exit 0 if all is done; it may be run again.
    """
    del host_work_path, verbosity
    if context.invoked_subcommand:
        return
    if not (action and src_dir and dst_dir):
        raise click.UsageError(
            "expected a command, or --action with --src-dir and --dst-dir", context
        )
    from grit_runtime.agent import one_shot  # brings the engine

    settings = config.load()
    if action == "restore":
        one_shot.restore(src_dir, dst_dir)
        return
    if runtime_endpoint:
        address = runtime_endpoint.removeprefix("unix://")
        settings = settings._replace(containerd_address=address)
    pod = one_shot.Pod(target_pod_namespace, target_pod_name, target_pod_uid)
    one_shot.checkpoint(pod, src_dir, dst_dir, settings)


@agent.command()
@click.option("--directory", help="Where they are kept; the configuration's agent_dir by default.")
@click.option("--node", metavar="NAME", required=True, help="This node, as kubectl names it.")
@click.option("--ca", metavar="DIR", default="", help="Where the CA is, if not in that directory.")
def init(directory: str | None, node: str, ca: str) -> None:
    """Make this node's certificate and key, and a CA if there is none yet.

    Nodes trust each other if their certificates are of the same CA: copy ca.pem and ca.key to the
    other nodes' directories first, or make all nodes' certificates where the CA is. Nothing is
    overwritten. The key of the CA is needed on no node afterwards.
    """
    from grit_runtime.agent import identity  # an extra

    made = identity.make(directory or config.load().agent_dir, node, ca)
    for path in made.paths:
        click.echo(path)
    click.echo(f"node {node}: valid until {made.valid_until}")


@agent.command()
@click.option(
    "--service-account",
    metavar="DIR",
    default="",
    help="Where a pod has its ServiceAccount's token, ca.crt and namespace: the node's certificate "
    "is the cluster's then, and its users may call, as far as RBAC lets them.",
)
def run(service_account: str) -> None:
    """Serve the node, in the foreground, until SIGTERM."""
    from grit_runtime.agent import daemon  # brings gRPC and TLS

    daemon.run(config.load(), service_account)


@agent.command()
@click.option("--json", "as_json", is_flag=True, help="Print a list of JSON objects.")
def status(as_json: bool) -> None:
    """Show the agent's jobs: those that have ended, and then the others."""
    from google.protobuf.json_format import MessageToDict

    from grit_runtime.agent import client

    jobs = client.status()
    if as_json:
        plain = [MessageToDict(job, preserving_proto_field_name=True) for job in jobs]
        click.echo(json.dumps(plain, indent=1))
        return
    for job in jobs:
        click.echo(line(job))


@agent.command()
@click.argument("job")
def cancel(job: str) -> None:
    """End JOB, an id that "grit agent status" shows. What it has moved stays for the next one."""
    from grit_runtime.agent import client

    for now in client.cancelled(job):
        click.echo(line(now))


def follow() -> None:
    """Show the jobs that have not ended, until all have: bars on a terminal, or lines."""
    from grit_runtime.agent import client

    shown = _Bars() if sys.stderr.isatty() else _Lines()
    with shown:
        jobs = [job for job in client.status() if not job.ended]
        if not jobs:
            click.echo("grit: the agent of this node has no job that has not ended", err=True)
        while jobs:
            time.sleep(_LOOK_EVERY_S)
            ids = {job.id for job in jobs}
            jobs = [job for job in client.status() if not job.ended or job.id in ids]
            shown.show(jobs)
            jobs = [job for job in jobs if not job.ended]


class _Lines:
    """A line for each change of a job's state."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is to be put back."""

    def show(self, jobs: list[agent_pb2.Job]) -> None:
        for job in jobs:
            now = f"{job.state} {job.phase}"
            if self._told.get(job.id) != now:
                self._told[job.id] = now
                click.echo(line(job))


class _Bars:
    """A bar for each job."""

    def __init__(self) -> None:
        self._progress = progress.bars()
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, jobs: list[agent_pb2.Job]) -> None:
        for job in jobs:
            name = printable(f"{job.phase} {job.namespace}/{job.name} {job.state}")
            if job.id not in self._tasks:
                self._tasks[job.id] = self._progress.add_task(name, total=None)
            size_bytes = job.size_bytes or None
            self._progress.update(
                self._tasks[job.id], description=name, total=size_bytes, completed=job.done_bytes
            )


def line(job: agent_pb2.Job) -> str:
    """A job in one line."""
    words = [job.id, job.state, job.phase, f"{job.namespace}/{job.name}"]
    if job.url:
        words.append(f"from {job.url}" if job.kind == "prepare" else f"to {job.url}")
    if job.size_bytes:
        words.append(f"{job.done_bytes} of {job.size_bytes} bytes")
    if job.state == "running" and job.bytes_per_s:
        words.append(f"{job.bytes_per_s / (1 << 20):.0f} MiB/s")
    if job.text:
        words.append(f"{job.text} ({job.reason})")
    return printable("  ".join(words))
