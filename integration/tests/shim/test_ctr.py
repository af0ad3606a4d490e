"""Tasks that ctr runs under containerd-shim-grit-v1, as nerdctl, moby and people do."""

from __future__ import annotations

import asyncio
import json
import shlex
from contextlib import contextmanager
from pathlib import Path

import pytest

from grit_runtime.errors import InvalidArgumentError
from grit_runtime.proto import runc_options_pb2, task_pb2
from grit_runtime.proto.containerd_types_pb2 import Mount
from grit_runtime.wire.well_known import pack
from integration.node import images
from integration.tests.shim import shim_client, task_events

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from subprocess import CompletedProcess

    from integration.node.node import Node
    from integration.tests.conftest import Nodes
    from integration.tests.shim.shim_client import ShimClient

pytestmark = pytest.mark.usefixtures("fresh_nodes")

CTR = ("ctr", "--namespace", "k8s.io")
LIST = f"{shlex.join(CTR)} task list"
RUN = (*CTR, "run", "--runtime", "io.containerd.grit.v1")
COUNT = "i=0; while :; do i=$((i + 1)); echo $i >/count.new; mv /count.new /count; sleep 0.05; done"

# Takes both outputs as containerd's README says: at 3 and 4, and 5 is closed when it is ready.
LOGGER = """\
#!/bin/sh
exec >/run/logged.new 5>&-
echo "$1=$2 of $CONTAINER_ID in $CONTAINER_NAMESPACE"
cat <&3
cat <&4
mv /run/logged.new /run/logged
"""


def ctr(node: Node, *arguments: str, check: bool = True) -> CompletedProcess[str]:
    return node.run([*CTR, *arguments], check=check)


@contextmanager
def task(node: Node, name: str, script: str, *options: str) -> Iterator[None]:
    """A task in the background that runs *script*; it has gone at the end."""
    node.run([*RUN, "--detach", *options, images.BUSYBOX, name, "sh", "-c", script])
    try:
        yield
    finally:
        ctr(node, "task", "delete", "--force", name, check=False)
        ctr(node, "container", "delete", name)


def at_terminal(node: Node, *argv: str) -> CompletedProcess[str]:
    """Run *argv* at a terminal of 33 lines and 77 columns."""
    command = f"stty rows 33 cols 77; exec {shlex.join(argv)}"
    return node.run(
        ["script", "--quiet", "--return", "--command", command, "/dev/null"], check=False
    )


def status(node: Node, name: str) -> str:
    """What ctr calls the state of a task."""
    lines = ctr(node, "task", "list").stdout.splitlines()
    return next(line.split()[2] for line in lines if line.split()[0] == name)


def wait_until_stopped(node: Node) -> None:
    """Wait until the only task has ended."""
    node.run(["sh", "-c", f"until {LIST} | grep -q STOPPED; do :; done"])


def wait_for(node: Node, path: str) -> str:
    """The content of a file of the node, once it is there."""
    node.run(["sh", "-c", f"until [ -e {path} ]; do sleep 0.05; done"])
    return node.path(Path(path)).read_text()


def test_a_task_gives_both_streams_and_its_exit_code(nodes: Nodes) -> None:
    script = "echo out; echo err >&2; exit 3"
    done = nodes.a.run([*RUN, "--rm", images.BUSYBOX, "once", "sh", "-c", script], check=False)
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 3)


def test_a_task_reads_its_input_to_the_end(nodes: Nodes) -> None:
    # ctr loses an end of input that comes before the task does.
    feed = f"echo one; until {LIST} | grep -q reader.*RUNNING; do :; done; echo two"
    run = shlex.join([*RUN, "--rm", images.BUSYBOX, "reader", "cat"])
    assert nodes.a.run(["sh", "-c", f"({feed}) | {run}"]).stdout == "one\ntwo\n"


SIZE = 'until [ "$(stty size)" = "33 77" ]; do sleep 0.05; done; tty; exit 4'


def test_a_task_at_a_terminal_has_its_size_and_exit_code(nodes: Nodes) -> None:
    run = (*RUN, "--rm", "--tty", images.BUSYBOX, "terminal", "sh", "-c", SIZE)
    done = at_terminal(nodes.a, *run)
    assert done.returncode == 4
    assert "/dev/pts/0" in done.stdout


def test_a_process_is_added_with_streams_or_a_terminal(nodes: Nodes) -> None:
    with task(nodes.a, "host", "sleep 1000"):
        script = "echo out; echo err >&2; exit 5"
        added = (*CTR, "task", "exec", "--exec-id", "added")
        done = nodes.a.run([*added, "host", "sh", "-c", script], check=False)
        assert (done.stdout, done.stderr, done.returncode) == ("out\n", "err\n", 5)
        done = at_terminal(nodes.a, *added, "--tty", "host", "sh", "-c", SIZE)
        assert done.returncode == 4
        assert "/dev/pts/" in done.stdout


def test_a_task_pauses_and_goes_on(nodes: Nodes) -> None:
    with task_events.watching(nodes.a) as events, task(nodes.a, "paused", COUNT):
        ctr(nodes.a, "task", "pause", "paused")
        assert status(nodes.a, "paused") == "PAUSED"
        for refused in (["pause", "paused"], ["exec", "--exec-id", "x", "paused", "true"]):
            assert "it is paused" in ctr(nodes.a, "task", *refused, check=False).stderr
        ctr(nodes.a, "task", "resume", "paused")
        assert status(nodes.a, "paused") == "RUNNING"
        assert "it is running" in ctr(nodes.a, "task", "resume", "paused", check=False).stderr
        told = [event.what for event in events.of("paused", "resumed")]
    assert told == ["create", "start", "paused", "resumed"]


def test_what_has_ended_is_not_there_to_be_killed(nodes: Nodes) -> None:
    with task(nodes.a, "ended", "sleep 1000"):
        ctr(nodes.a, "task", "kill", "--signal", "KILL", "ended")
        wait_until_stopped(nodes.a)
        failed = ctr(nodes.a, "task", "kill", "ended", check=False)
        assert "process already finished" in failed.stderr
        refused = ctr(nodes.a, "task", "exec", "--exec-id", "x", "ended", "true", check=False)
        assert "it is stopped" in refused.stderr


def test_a_task_is_deleted_once_by_many_at_once(nodes: Nodes) -> None:
    async def delete(client: ShimClient) -> list[str]:
        await client.tell("Kill", signal=9)
        await client.tell("Wait")
        answers = (client.ask("Delete", task_pb2.DeleteResponse) for _ in range(3))
        done = await asyncio.gather(*answers, return_exceptions=True)
        await client.tell("Shutdown")  # containerd, which was not asked, would leave it there
        return sorted(type(answer).__name__ for answer in done)

    with task_events.watching(nodes.a) as events:
        with task(nodes.a, "once-only", "sleep 1000"):
            answers = shim_client.talk(nodes.a, "once-only", delete)
        told = [event.what for event in events.of("once-only", "delete")]
    assert answers == ["DeleteResponse", "NotFoundError", "NotFoundError"]
    assert told == ["create", "start", "exit", "delete"]


@pytest.mark.parametrize(
    ("first", "labels"), [(65536, ()), (131072, ("--remap-labels",))], ids=["copied", "mapped"]
)
def test_a_task_has_users_of_its_own(nodes: Nodes, first: int, labels: tuple[str, ...]) -> None:
    """With the labels, containerd 2 has the shim map the image's files; else it copies them.

    Each has users of its own: containerd 1.7's ctr takes a copy of the same name that the
    garbage collection of the last task is about to remove.
    """
    users = ("--uidmap", f"0:{first}:65536", "--gidmap", f"0:{first}:65536", *labels)
    script = "touch /made; stat -c '%u %g' /bin /made; cat /proc/self/uid_map >&2"
    argv = [*RUN, "--rm", *users, images.BUSYBOX, "users", "sh", "-c", script]
    done = nodes.a.run(argv)
    assert done.stdout == "0 0\n0 0\n"
    assert done.stderr.split() == ["0", str(first), "65536"]
    assert "/run/grit/lowers" not in nodes.a.run(["cat", "/proc/mounts"]).stdout
    assert not list(nodes.a.path(Path("/run/grit")).glob("lowers*"))


def test_users_that_cannot_be_mapped_are_named(nodes: Nodes) -> None:
    path = "/run/unmapped"
    options = ["uidmap=0:65536", "gidmap=0:65536:65536"]

    async def create(client: ShimClient) -> None:
        rootfs = [Mount(type="tmpfs", source="tmpfs", options=options)]
        with pytest.raises(InvalidArgumentError, match="uidmap=0:65536: expected INSIDE:OUTSIDE"):
            await client.tell("Create", id="unmapped", bundle=path, rootfs=rootfs)

    nodes.a.run(["mkdir", path])
    nodes.a.path(Path(path) / "config.json").write_text("{}")
    with task(nodes.a, "mapper", "sleep 1000"):
        shim_client.talk(nodes.a, "mapper", create)


def test_metrics_are_those_of_the_cgroup(nodes: Nodes) -> None:
    with task(nodes.a, "measured", "sleep 1000", "--memory-limit", str(64 << 20)):
        seen = json.loads(ctr(nodes.a, "task", "metrics", "--format", "json", "measured").stdout)
        memory = seen["memory"]
        limit = memory["usage"]["limit"] if "usage_limit" not in memory else memory["usage_limit"]
        assert int(limit) == 64 << 20
        assert seen["pids"]["current"] == 1
        cpu = seen["cpu"]
        assert int(cpu["usage"]["total"] if "usage" in cpu else cpu["usage_usec"]) > 0


async def end_with_checkpoint(client: ShimClient) -> None:
    """As ctr can too, but not twice for one task where containerd is 1.7."""
    options = pack(runc_options_pb2.CheckpointOptions(exit=True))
    await client.tell("Checkpoint", path="/run/images", options=options)


def test_a_task_is_checkpointed_and_restored(nodes: Nodes) -> None:
    node = nodes.a
    with task(node, "counter", COUNT):
        ctr(node, "task", "exec", "--exec-id", "wait", "counter", "sh", "-c",
            "until [ $(cat /count) -gt 20 ]; do sleep 0.05; done")  # fmt: skip
        what = ("--task", "--rw", "--image")
        ctr(node, "container", "checkpoint", *what, "counter", "localhost/saved:1")
        assert status(node, "counter") == "RUNNING"
        shim_client.talk(node, "counter", end_with_checkpoint)
        assert node.path(Path("/run/images/inventory.img")).exists()
        wait_until_stopped(node)
    with task_events.watching(node) as events:
        ctr(node, "container", "restore", "--live", "--rw", "again", "localhost/saved:1")
        try:
            (made, started) = events.of("again", "start")
            assert (made.what, made.message.pid) == ("create", 0)
            assert started.message.pid > 0
            count = ctr(node, "task", "exec", "--exec-id", "look", "again", "cat", "/count").stdout
            assert int(count) > 20
        finally:
            ctr(node, "task", "delete", "--force", "again")
            ctr(node, "container", "delete", "again")


def test_a_file_takes_both_outputs(nodes: Nodes) -> None:
    with task(
        nodes.a,
        "filed",
        "echo out; echo err >&2",
        "--log-uri",
        "file:///run/logs/filed",
    ):
        both = "until grep -q err /run/logs/filed && grep -q out /run/logs/filed; do :; done"
        nodes.a.run(["sh", "-c", both])
        # They come through two pipes.
        assert sorted(nodes.a.path(Path("/run/logs/filed")).read_text().split()) == ["err", "out"]


def test_a_program_takes_both_outputs(nodes: Nodes) -> None:
    logger = nodes.a.path(Path("/usr/local/bin/logger"))
    logger.write_text(LOGGER)
    logger.chmod(0o755)
    options = ("--log-uri", "binary:///usr/local/bin/logger?tag=a b")
    with task(nodes.a, "logged", "echo out; echo err >&2", *options):
        assert wait_for(nodes.a, "/run/logged") == "tag=a b of logged in k8s.io\nout\nerr\n"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("binary:///no/such/program", "logging program /no/such/program: not found"),
        ("binary:///bin/false", "logging program /bin/false ended before it was ready"),
        ("carrier://pigeon", "carrier"),
    ],
)
def test_an_output_that_cannot_be_had_fails_the_start(nodes: Nodes, uri: str, reason: str) -> None:
    options = ("--detach", "--log-uri", uri, images.BUSYBOX, "unlogged", "true")
    failed = nodes.a.run([*RUN, *options], check=False)
    ctr(nodes.a, "container", "delete", "unlogged")
    assert failed.returncode != 0
    assert reason in failed.stderr


def test_a_full_disk_costs_the_log_and_not_the_task(nodes: Nodes) -> None:
    node = nodes.a
    node.run(["sh", "-c", "mkdir /run/full && mount -t tmpfs -o size=64k tmpfs /run/full"])
    try:
        with (
            task_events.watching(node) as events,
            task(node, "flood", "seq 100000 && exit 6", "--log-uri", "file:///run/full/log"),
        ):
            (told,) = [event for event in events.of("flood", "exit") if event.what == "exit"]
        assert told.message.exit_status == 6
        log = node.path(Path("/run/full/log")).read_text()
        assert log.startswith("1\n2\n3\n")
    finally:
        node.run(["umount", "/run/full"])
